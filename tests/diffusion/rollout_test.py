"""The rollout: one video whatever way it is made, and in constant memory."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import window as window_lib

B, FRAME = 2, tiny_model.FRAME
WINDOW = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=5)
SAMPLERS = {
  "few_step": sampling.few_step((1000, 500)),
  "euler": sampling.euler(2, shift=3.0, guidance=None),
  "guided": sampling.euler(2, shift=3.0, guidance=2.5),
}
samplers = pytest.mark.parametrize("name", SAMPLERS)

_chunk_step = jax.jit(
  chunk_pass.chunk_step, static_argnames=("window", "sampler")
)

_commit = jax.jit(chunk_pass.commit, static_argnames="window")


def _setup(seed, name="few_step", kind="latent", **kwargs):
  """Model, text of all streams, one key per video, sampler."""
  rng = np.random.default_rng(seed)
  model = tiny_model.build(kind, rng, **kwargs)
  sampler = SAMPLERS[name]
  text = tiny_model.normal(rng, B * sampler.rows_per_video, *tiny_model.TEXT)
  return model, text, jax.random.split(jax.random.key(seed), B), sampler


def _generate(model, text, keys, sampler, num_frames, **kwargs):
  values = dict(frame=FRAME, window=WINDOW) | kwargs
  return rollout.generate(
    model, text, keys, num_frames=num_frames, sampler=sampler, **values
  )


@samplers
def test_video_equals_chunk_steps_by_hand(seed, name):
  model, text, keys, sampler = _setup(seed, name)
  video = _generate(model, text, keys, sampler, 12)
  cache = rollout.empty_cache(
    model, batch=text.shape[0], frame=FRAME, window=WINDOW, max_frames=12
  )
  for chunk in range(4):
    noise = sampling.chunk_noise(
      keys, jnp.asarray(chunk), shape=(3, *FRAME), sampler=sampler
    )
    latents, cache = _chunk_step(
      model, cache, noise, text, window=WINDOW, sampler=sampler
    )
    part = video[:, 3 * chunk : 3 * chunk + 3]
    tolerances.assert_close(part, latents, "float32_deep")
    assert jnp.isfinite(part).all()


@pytest.mark.parametrize("num_frames", [1, 2, 3, 7, 11])
def test_any_length_is_a_prefix_of_a_longer_video(seed, num_frames):
  model, text, keys, sampler = _setup(seed)
  short = _generate(model, text, keys, sampler, num_frames)
  assert short.shape == (B, num_frames, *FRAME)
  long = _generate(model, text, keys, sampler, 12)
  tolerances.assert_close(short, long[:, :num_frames], "float32_deep")


@samplers
def test_video_does_not_depend_on_the_others_of_its_batch(seed, name):
  model, text, keys, sampler = _setup(seed, name)
  together = _generate(model, text, keys, sampler, 9)
  for video in range(B):
    alone = _generate(
      model, text[video::B], keys[video : video + 1], sampler, 9
    )
    tolerances.assert_close(together[video], alone[0], "float32_deep")


def test_videos_differ_by_key_and_by_prompt(seed):
  model, text, keys, sampler = _setup(seed)
  same_text = jnp.broadcast_to(text[:1], text.shape)
  one_key = jnp.stack([keys[0], keys[0]])
  assert not np.allclose(*_generate(model, same_text, keys, sampler, 3))
  assert not np.allclose(*_generate(model, text, one_key, sampler, 3))
  tolerances.assert_close(
    *_generate(model, same_text, one_key, sampler, 3), "float32_deep"
  )


def test_callers_keys_survive_the_donation_of_the_state(seed):
  model, text, keys, sampler = _setup(seed)
  first = _generate(model, text, keys, sampler, 6)
  np.testing.assert_array_equal(_generate(model, text, keys, sampler, 6), first)
  jax.random.key_data(keys).block_until_ready()


def test_guidance_of_one_equals_no_guidance(seed):
  model, text, keys, _ = _setup(seed, "guided")
  one = sampling.euler(2, shift=3.0, guidance=1.0)
  guided = _generate(model, text, keys, one, 6)
  plain = _generate(model, text[:B], keys, SAMPLERS["euler"], 6)
  tolerances.assert_close(guided, plain, "float32_deep")


def test_guidance_uses_the_unconditional_prompt(seed):
  model, text, keys, sampler = _setup(seed, "guided")
  other = text.at[B:].set(0.0)
  assert not np.allclose(
    _generate(model, text, keys, sampler, 3),
    _generate(model, other, keys, sampler, 3),
  )


@samplers
@pytest.mark.parametrize("given", [1, 3, 4, 6])
def test_context_stays_in_front_and_is_seen(seed, name, given):
  model, text, keys, sampler = _setup(seed, name)
  context = tiny_model.normal(np.random.default_rng(seed + 1), B, given, *FRAME)
  run = functools.partial(_generate, model, text, keys, sampler, given + 4)
  video = run(context=context)
  assert video.shape[1] == given + 4
  np.testing.assert_array_equal(video[:, :given], context)
  other = run(context=-context)
  assert not np.allclose(video[:, given:], other[:, given:])


@samplers
def test_continuation_equals_the_uninterrupted_rollout(seed, name):
  model, text, keys, sampler = _setup(seed, name)
  whole = _generate(model, text, keys, sampler, 15)
  state = rollout.start(
    model,
    text,
    keys,
    frame=FRAME,
    window=WINDOW,
    sampler=sampler,
    max_frames=15,
    context=whole[:, :9],
  )
  state = state._replace(chunk=jnp.asarray(3, jnp.int32))
  latents, state = rollout.scan_chunks(
    model, state, text, window=WINDOW, sampler=sampler, chunks=2, frame=FRAME
  )
  rest = jnp.concatenate(list(latents), axis=1)
  tolerances.assert_close(rest, whole[:, 9:], "float32_deep")
  assert int(state.chunk) == 5
  assert state.cache.next_frame.tolist() == [15] * text.shape[0]


def test_two_short_scans_equal_one_long_scan(seed):
  model, text, keys, sampler = _setup(seed)
  run = functools.partial(
    rollout.scan_chunks, model, window=WINDOW, sampler=sampler, frame=FRAME
  )
  start = functools.partial(
    rollout.start,
    model,
    text,
    frame=FRAME,
    window=WINDOW,
    sampler=sampler,
    max_frames=15,
  )
  whole, _ = run(start(jnp.copy(keys)), text, chunks=4)
  first, state = run(start(jnp.copy(keys)), text, chunks=2)
  second, _ = run(state, text, chunks=2)
  tolerances.assert_close(
    jnp.concatenate([first, second]), whole, "float32_deep"
  )


def test_prefill_donates_its_cache_and_returns_a_whole_one(seed):
  model, text, _, _ = _setup(seed)
  rng = np.random.default_rng(seed)
  latents = tiny_model.normal(rng, B, 7, *FRAME)
  empty = functools.partial(
    rollout.empty_cache,
    model,
    batch=B,
    frame=FRAME,
    window=WINDOW,
    max_frames=12,
  )
  cache = rollout.prefill(model, empty(), latents, text, window=WINDOW)
  by_hand = empty()
  for piece in (slice(0, 1), slice(1, 4), slice(4, 7)):
    by_hand = _commit(model, by_hand, latents[:, piece], text, window=WINDOW)
  np.testing.assert_array_equal(cache.frame, by_hand.frame)
  jax.tree.map(tolerances.assert_close, cache.entries, by_hand.entries)


@pytest.mark.parametrize("kind", ["latent", "dense"])
@pytest.mark.parametrize("scan_blocks", [True, False])
def test_a_commit_stores_the_entries_of_its_pass(seed, kind, scan_blocks):
  rng = np.random.default_rng(seed)
  model, text, _, _ = _setup(seed, kind=kind, scan_blocks=scan_blocks)
  cache = rollout.empty_cache(
    model, batch=B, frame=FRAME, window=WINDOW, max_frames=99
  )
  for _ in range(2):  # the second one reads the first and wraps the ring
    x0 = tiny_model.normal(rng, B, 3, *FRAME)
    positions = chunk_pass.positions_of(cache, 3, window=WINDOW)
    _, entries = jax.jit(chunk_pass.velocity_and_entries)(
      model, cache, x0, jnp.zeros(()), text, positions
    )
    expected = cache_lib.append(cache, entries, window=WINDOW)
    cache = _commit(model, cache, x0, text, window=WINDOW)
    np.testing.assert_array_equal(cache.frame, expected.frame)
    jax.tree.map(tolerances.assert_close, cache.entries, expected.entries)


@functools.partial(jax.jit, static_argnames="window")
def _after_commits(model, past, chunk, text, cotangent, *, window):
  """Velocity of a chunk after the chunks of `past`, and their gradient."""

  def run(past):
    def step(cache, latents):
      return chunk_pass.commit(model, cache, latents, text, window=window), None

    cache = rollout.empty_cache(
      model, batch=B, frame=FRAME, window=window, max_frames=99
    )
    chunks = jnp.moveaxis(past.reshape(B, -1, 3, *FRAME), 1, 0)
    cache, _ = jax.lax.scan(step, cache, chunks)
    positions = chunk_pass.positions_of(cache, 3, window=window)
    timestep = jnp.asarray(500.0)
    return rollout.forward(model, cache, chunk, timestep, text, positions)[0]

  out, pull = jax.vjp(run, past)
  return out, *pull(cotangent)


@pytest.mark.parametrize("kind", ["latent", "dense"])
@pytest.mark.parametrize(
  ("sink", "local", "visible"),
  [(1, 5, {0, 7, 8}), (0, 3, set()), (2, 6, {0, 1, 6, 7, 8})],
)
def test_evicted_frames_have_exactly_zero_influence(
  seed, kind, sink, local, visible
):
  # In deeper layers, kept entries know of evicted frames; one layer is exact.
  model, text, _, _ = _setup(seed, kind=kind, num_layers=1)
  rng = np.random.default_rng(seed)
  past = tiny_model.normal(rng, B, 9, *FRAME)
  chunk = tiny_model.normal(rng, B, 3, *FRAME)
  window = window_lib.Window(
    chunk_frames=3, sink_frames=sink, local_frames=local
  )
  cotangent = tiny_model.normal(rng, *chunk.shape)
  run = functools.partial(_after_commits, window=window)
  out, gradient = run(model, past, chunk, text, cotangent)
  seen = set(np.flatnonzero(np.asarray(gradient != 0).any((0, 2, 3, 4))))
  assert seen == visible
  gone = [f for f in range(9) if f not in visible]
  other = past.at[:, gone].set(1e4)
  np.testing.assert_array_equal(
    run(model, other, chunk, text, cotangent)[0], out
  )


def _compiled(model, text, sampler, chunks, window=WINDOW):
  state = jax.eval_shape(
    lambda: rollout.Rollout(
      rollout.empty_cache(
        model,
        batch=text.shape[0],
        frame=FRAME,
        window=window,
        max_frames=10**6,
      ),
      jax.random.split(jax.random.key(0), B),
      jnp.zeros((), jnp.int32),
    )
  )
  lowered = rollout.scan_chunks.lower(
    model,
    state,
    text,
    window=window,
    sampler=sampler,
    chunks=chunks,
    frame=FRAME,
  )
  return lowered.compile(), state.cache


def _largest_buffer(text):
  """Elements of the largest array in a compiled program."""
  shapes = re.findall(r"\b(?:f32|bf16|s32|u32|pred)\[([\d,]+)\]", text)
  return max(math.prod(map(int, s.split(","))) for s in set(shapes))


@pytest.mark.parametrize("scan_blocks", [True, False])
@pytest.mark.parametrize("kind", ["latent", "dense"])
def test_minute_ten_takes_the_memory_of_second_ten(kind, scan_blocks):
  model, text, _, sampler = _setup(0, kind=kind, scan_blocks=scan_blocks)
  results = []
  for seconds in (10, 600):
    chunks = 4 * seconds // 3  # 4 latent frames per second
    compiled, cache = _compiled(model, text, sampler, chunks)
    memory = compiled.memory_analysis()
    video = chunks * B * 3 * math.prod(FRAME) * 4
    outputs = memory.output_size_in_bytes - video
    results.append(
      (
        memory.temp_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.argument_size_in_bytes,
        outputs,
      )
    )
    assert memory.alias_size_in_bytes >= cache_lib.num_bytes(cache)
  assert results[0] == results[1]


def test_no_buffer_is_larger_than_the_accounted_ones():
  window = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=60)
  model, text, _, sampler = _setup(0, num_layers=3)
  compiled, cache = _compiled(model, text, sampler, 2, window)
  config = model.config
  queries = 3 * tiny_model.TOKENS
  keys = queries + (1 + 57) * tiny_model.TOKENS
  heads = config.attention.num_heads
  accounted = {
    "weights": max(leaf.size for leaf in jax.tree.leaves(model)),
    "cache": max(leaf.size for leaf in jax.tree.leaves(cache.entries)),
    "expanded keys": B * keys * heads * config.attention.head_dim,
    "scores": B * heads * queries * min(keys, 512),
    "queries folded": B * queries * heads * config.attention.d_c,
    "activations": B * queries * max(config.ffn_width, 6 * config.width),
    "video": 2 * B * 3 * math.prod(FRAME),
  }
  assert _largest_buffer(compiled.as_text()) <= max(accounted.values())


def test_temporaries_do_not_hold_a_second_cache():
  # Temporaries grow with the keys of one layer, whatever the number of layers.
  growth = []
  for num_layers in (2, 8):
    model, text, _, sampler = _setup(0, num_layers=num_layers)
    temporaries = []
    for local in (103, 203):
      window = window_lib.Window(
        chunk_frames=3, sink_frames=1, local_frames=local
      )
      compiled, _ = _compiled(model, text, sampler, 2, window)
      temporaries.append(compiled.memory_analysis().temp_size_in_bytes)
    growth.append(temporaries[1] - temporaries[0])
  assert growth[1] <= 1.05 * growth[0]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(frame=(4, 2, 3)), "latents have 3 channels but the model takes 2"),
    (dict(frame=(3, 2, 2)), "latent height=3 must be a positive multiple"),
    (dict(frame=(4, 4, 2)), "token grid of 2 x 2 but the model was trained"),
    (dict(num_frames=0), "num_frames=0 must be at least 1"),
    (dict(text=(3, 3, 8)), "text has 3 rows for 2 examples"),
    (dict(text=(2, 3, 9)), "text has shape"),
    (dict(context=(2, 1, 4, 4, 2)), "token grid of 2 x 2"),
    (dict(context=(1, 1, 4, 2, 2)), "context has 1 examples for 2 prompts"),
    (dict(context=(2, 1, 4, 2, 3)), "latents have 3 channels"),
  ],
  ids=str,
)
def test_bad_input_is_refused_before_compilation(seed, changes, message):
  model, text, keys, sampler = _setup(seed, learned_grid=(2, 1))
  changes = {
    name: jnp.zeros(value) if name in ("text", "context") else value
    for name, value in changes.items()
  }
  values = dict(text=text, num_frames=6) | changes
  with pytest.raises(ValueError, match=message):
    _generate(model, values.pop("text"), keys, sampler, **values)


def test_num_frames_below_one_is_refused_with_a_context_too(seed):
  model, text, keys, sampler = _setup(seed)
  context = jnp.zeros((B, 3, *FRAME))
  with pytest.raises(ValueError, match="num_frames=0 must be at least 1"):
    _generate(model, text, keys, sampler, 0, context=context)


def test_guided_sampler_wants_two_rows_of_text_per_video(seed):
  model, text, keys, sampler = _setup(seed, "guided")
  with pytest.raises(ValueError, match="give 4: conditional rows"):
    rollout.start(
      model,
      text[:3],
      keys,
      frame=FRAME,
      window=WINDOW,
      sampler=sampler,
      max_frames=6,
    )


@pytest.mark.parametrize(
  "sigmas", [(), (0.5, 0.7), (1.2, 0.5), (1.0, 0.5, 0.5), (1.0, 0.0), (-0.1,)]
)
def test_sampler_refuses_levels_that_do_not_descend(sigmas):
  with pytest.raises(ValueError, match="must descend from at most 1"):
    sampling.Sampler(sigmas=sigmas, rule="renoise")


def test_sampler_refuses_no_step():
  with pytest.raises(ValueError, match="num_steps=0 must be at least 1"):
    sampling.euler(0, shift=5.0, guidance=None)


def test_raw_keys_are_keys_too(seed: int) -> None:
  raw, typed = jax.random.PRNGKey(seed), jax.random.key(seed)
  a, b = (rollout.split_keys(key, 3) for key in (raw, typed))
  assert a.shape == b.shape == (3,)
  assert (jax.random.key_data(a) == jax.random.key_data(b)).all()


@pytest.mark.parametrize("kind", ["latent", "dense"])
@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_eight_bit_cache_stays_near_float32(seed, kind, dtype):
  model, text, keys, sampler = _setup(seed, kind=kind)
  plain = _generate(model, text, keys, sampler, 12)
  small = _generate(model, text, keys, sampler, 12, cache_dtype=dtype)
  # The first chunk has no history; later ones feel the rounding of the cache.
  np.testing.assert_array_equal(plain[:, :3], small[:, :3])
  assert (np.asarray(plain) != np.asarray(small)).any()
  tolerances.assert_close(small, plain, f"{dtype}_cache")
