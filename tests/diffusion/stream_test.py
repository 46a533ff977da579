"""Tests of streams: the video of `generate`, and prompts that change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.diffusion import stream
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib

_WINDOW = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=6)
_ALL = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=None)
_PLAIN = sampling.euler(2, shift=2.0, guidance=None)


class _Case:
  """A network with random weights, two prompts and a key."""

  def __init__(self, seed: int, *, batch: int = 1, streams: int = 1):
    rng = np.random.default_rng(seed)
    self.model: wan.WanDiT = tiny_model.build("latent", rng)
    shape = (batch * streams, *tiny_model.TEXT)
    self.text, self.other = (tiny_model.normal(rng, *shape) for _ in range(2))
    self.key = jax.random.key(seed)
    self.image = tiny_model.normal(rng, batch, 1, *tiny_model.FRAME)

  def stream(self, window=_WINDOW, sampler=_PLAIN, **kwargs) -> stream.Stream:
    call = dict(frame=tiny_model.FRAME, window=window, sampler=sampler)
    values = dict(max_frames=15) | kwargs
    return stream.Stream(self.model, self.text, self.key, **call, **values)

  def generate(self, window=_WINDOW, sampler=_PLAIN, **kwargs) -> jax.Array:
    call = dict(frame=tiny_model.FRAME, window=window, sampler=sampler)
    values = dict(num_frames=15) | kwargs
    return rollout.generate(self.model, self.text, self.key, **call, **values)


@pytest.mark.parametrize("sampler", ["guided", "few_step"])
def test_stream_is_the_video_of_generate(seed: int, sampler: str) -> None:
  guided = sampler == "guided"
  steps = (
    sampling.euler(2, shift=2.0, guidance=3.0)
    if guided
    else sampling.few_step((1000, 500), shift=5.0)
  )
  case = _Case(seed, batch=2, streams=steps.rows_per_video)
  context = jnp.concatenate([case.image, case.image[:, :0]], axis=1)
  given = dict(sampler=steps, context=context if guided else None)
  pieces = [*case.stream(**given, max_frames=11)]
  whole = case.generate(**given, num_frames=12 + guided)
  tolerances.assert_close(
    jnp.concatenate(pieces, axis=1), whole[:, int(guided) :], "float32"
  )


def test_next_chunk_is_under_way_when_one_is_handed_out(seed: int) -> None:
  chunks = _Case(seed).stream(max_frames=9)
  assert int(chunks.state.chunk) == 0
  counts = [int(chunks.state.chunk) for _ in chunks]
  assert counts == [2, 3, 3]
  assert chunks.state.cache.next_frame.tolist() == [9]


def test_what_follows_a_chunk_is_dispatched_before_the_next_one(seed) -> None:
  order = []

  def decode(latents):
    order.append("decode")
    return 2 * latents

  class Spy(stream.Stream):
    def _dispatch(self):
      order.append("generate")
      return super()._dispatch()

  case = _Case(seed)
  call = dict(frame=tiny_model.FRAME, window=_WINDOW, sampler=_PLAIN)
  doubled = Spy(
    case.model, case.text, case.key, **call, max_frames=9, then=decode
  )
  pairs = zip(doubled, case.stream(max_frames=9), strict=True)
  for pixels, latents in pairs:
    np.testing.assert_array_equal(pixels, 2 * latents)
  # Behind the last chunk there is nothing to generate.
  assert order[:6] == ["generate", "decode"] * 3
  assert "decode" not in order[6:]


@pytest.mark.parametrize(("frames", "chunks"), [(1, 1), (3, 1), (4, 2)])
def test_length_is_rounded_up_to_chunks(
  seed: int, frames: int, chunks: int
) -> None:
  case = _Case(seed)
  pieces = [*case.stream(max_frames=frames)]
  assert [x.shape[1] for x in pieces] == [3] * chunks


def test_no_frame_is_left_after_a_clip_of_full_length(seed: int) -> None:
  case = _Case(seed)
  for window in (_WINDOW, _ALL):
    chunks = case.stream(window, max_frames=0, context=case.image)
    assert [*chunks] == []


def test_endless_stream_has_the_same_frames(seed: int) -> None:
  case = _Case(seed)
  endless = case.stream(max_frames=None)
  for expected in case.stream(max_frames=12):
    tolerances.assert_close(next(endless), expected, "exact")


def test_keys_and_context_of_the_caller_stay(seed: int) -> None:
  case = _Case(seed, batch=2)
  case.key = jax.random.split(case.key, 2)
  first = [*case.stream(max_frames=6, context=case.image)]
  again = [*case.stream(max_frames=6, context=case.image)]
  tolerances.assert_close(first[1], again[1], "exact")


@pytest.mark.parametrize("given", [False, True])
def test_recache_with_the_same_prompt_changes_nothing_at_the_start(
  seed: int, given: bool
) -> None:
  case = _Case(seed)
  context = case.image if given else None
  switched = case.stream(_ALL, context=context)
  untouched = case.stream(_ALL, context=context)
  for _ in range(2):
    tolerances.assert_close(next(switched), next(untouched), "exact")
  before = jax.tree.map(np.asarray, switched.state.cache)
  switched.switch(case.text, how="recache")
  after = switched.state.cache
  for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before)):
    tolerances.assert_close(a, b, "float32")
  next(switched), next(untouched)
  tolerances.assert_close(next(switched), next(untouched), "float32_deep")


def test_recached_window_is_made_from_its_own_frames_alone(seed: int) -> None:
  case = _Case(seed)
  chunks = case.stream()
  frames = jnp.concatenate([next(chunks) for _ in range(4)], axis=1)
  held = chunks.state.cache.frame.tolist()
  assert sorted(held[0]) == [0, 12, 13, 14]
  frames = jnp.concatenate([frames, chunks._ahead], axis=1)
  chunks.switch(case.other, how="recache")
  state = chunks.state.cache
  assert state.frame.tolist() == held
  assert state.next_frame.tolist() == [15]
  # The same frames, committed under the new prompt as frames 0 to 3.
  fresh = rollout.empty_cache(
    case.model,
    batch=1,
    frame=tiny_model.FRAME,
    window=_WINDOW,
    max_frames=15,
  )
  for part in (frames[:, :1], frames[:, 12:]):
    fresh = rollout.prefill(case.model, fresh, part, case.other, window=_WINDOW)
  order = np.argsort(np.asarray(fresh.frame[0]))
  kept = np.argsort(np.asarray(state.frame[0]))
  for a, b in zip(jax.tree.leaves(state.entries), jax.tree.leaves(fresh[0])):
    tolerances.assert_close(a[:, :, kept], b[:, :, order], "float32")


def test_flush_keeps_the_sink_and_the_newest_frames(seed: int) -> None:
  case = _Case(seed)
  chunks = case.stream()
  next(chunks)
  next(chunks)
  chunks.switch(case.other, how="flush")
  assert sorted(chunks.state.cache.frame[0].tolist()) == [-1, 0, 7, 8]
  assert chunks.state.cache.next_frame.tolist() == [9]


@pytest.mark.parametrize("how", ["keep", "flush", "recache"])
def test_prompt_changes_the_chunks_that_are_not_under_way(
  seed: int, how: str
) -> None:
  case = _Case(seed)
  switched, untouched = case.stream(), case.stream()
  next(switched), next(untouched)
  switched.switch(case.other, how=how)
  tolerances.assert_close(next(switched), next(untouched), "exact")
  changed, same = next(switched), next(untouched)
  assert tolerances.relative_error(changed, same) > 1e-3


def test_keep_with_the_same_prompt_changes_nothing(seed: int) -> None:
  case = _Case(seed)
  switched, untouched = case.stream(), case.stream()
  next(switched), next(untouched)
  switched.switch(case.text, how="keep")
  for a, b in zip(switched, untouched):
    tolerances.assert_close(a, b, "exact")


def test_jump_moves_the_next_chunk_only_once(seed: int) -> None:
  case = _Case(seed)
  jumped, untouched = case.stream(), case.stream()
  next(jumped), next(untouched)
  jumped.switch(case.text, how="keep", jump_to=40)
  next(jumped), next(untouched)
  assert tolerances.relative_error(next(jumped), next(untouched)) > 1e-4
  assert jumped._jump_to is None


def test_bad_switches_change_nothing(seed: int) -> None:
  case = _Case(seed)
  chunks = case.stream()
  next(chunks)
  before = np.asarray(chunks.state.cache.frame)
  with pytest.raises(ValueError, match="as many prompts as before"):
    chunks.switch(jnp.concatenate([case.text, case.text]))
  np.testing.assert_array_equal(chunks.state.cache.frame, before)


def test_impossible_streams_are_errors(seed: int) -> None:
  case = _Case(seed)
  with pytest.raises(ValueError, match="bounded window"):
    case.stream(_ALL, max_frames=None)
  with pytest.raises(ValueError, match="one clip per prompt"):
    case.stream(context=jnp.concatenate([case.image] * 2))
  with pytest.raises(ValueError, match="resize"):
    case.stream(context=case.image[:, :, :2])
  with pytest.raises(ValueError, match="conditional rows"):
    case.key = jax.random.split(case.key, 2)
    case.stream()
