"""The cached rollout against two original implementations.

`causal_rollout` stores keys rotated at absolute frames (Causal-Forcing),
`infinity_rope` keeps them unrotated at window-relative positions
(Infinity-RoPE). Runs left out, since the originals deviate from their own
rules there: `c3_w6_s1_cap15` drops the sink when the buffer exceeds the
window, and `*_quirk` either rotate the first pass of a chunk elsewhere than
the others or leave a history frame unrotated.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from tests.parity import goldens
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib

_ABSOLUTE = ("c3_wfull_s0", "c3_w6_s1", "c3_w7_s1", "c3_w6_s0", "c1_w4_s1")
_RELATIVE = ("w6_s1", "w9_s1", "w6_s1_flush", "w6_s1_flush_cut")
_SWITCH = 3  # Chunk at which the `flush` runs change the prompt.
_CUT = 45  # Temporal coordinate that a cut jumps to.
_FILES = dict.fromkeys(_ABSOLUTE, "causal_rollout") | dict.fromkeys(
  _RELATIVE, "infinity_rope"
)


class Run(typing.NamedTuple):
  """One recorded rollout."""

  name: str

  @property
  def file(self) -> str:
    return _FILES[self.name]

  @property
  def scheme(self) -> str:
    return "absolute" if self.name in _ABSOLUTE else "window"

  @property
  def window(self) -> window_lib.Window:
    return goldens.window(goldens.config(self.file)["runs"][self.name])

  @property
  def chunks(self) -> int:
    return len(self["t"])

  def __getitem__(self, name: str) -> np.ndarray:
    return goldens.load(self.file)[f"{self.name}/{name}"]

  def latents(self, name: str) -> jax.Array:
    return goldens.channels_last(self[name])

  def text(self, chunk: int) -> jax.Array:
    second = "flush" in self.name and chunk >= _SWITCH
    name = "in/text2" if second else "in/text"
    return jnp.asarray(goldens.load(self.file)[name])

  def jump_to(self, chunk: int) -> int | None:
    return _CUT if self.name.endswith("cut") and chunk == _SWITCH else None

  def noise(self) -> sampling.Noise:
    """Recorded noise with a leading chunk axis."""
    start = self.latents("noise")
    chunk = self.window.chunk_frames
    start = start.reshape(len(start), -1, chunk, *start.shape[2:])
    return sampling.Noise(start.swapaxes(0, 1), self.latents("eps"))

  def empty_cache(self) -> cache_lib.Cache:
    latents = self.latents("latents")
    return rollout.empty_cache(
      goldens.model(self.file),
      batch=len(latents),
      frame=latents.shape[2:],
      window=self.window,
      max_frames=latents.shape[1],
    )

  def enter(self, cache: cache_lib.Cache, chunk: int) -> cache_lib.Cache:
    """What happens to the cache before a chunk."""
    if "flush" in self.name and chunk == _SWITCH:
      return cache_lib.flush(cache, window=self.window)
    return cache

  def sampler(self) -> sampling.Sampler:
    config = goldens.config(self.file)
    return sampling.few_step(tuple(config["raw_steps"]), shift=config["shift"])


@functools.partial(jax.jit, static_argnames=("window", "scheme", "jump_to"))
def _call(
  model: wan.WanDiT, cache, x, timestep, text, *, window, scheme, jump_to
) -> tuple:
  positions = chunk_pass.positions_of(
    cache, x.shape[1], window=window, scheme=scheme, jump_to=jump_to
  )
  out = chunk_pass.velocity_and_entries(
    model, cache, x, timestep, text, positions
  )
  return (*out, positions)


_commit = jax.jit(cache_lib.append, static_argnames="window")
_chunk_step = jax.jit(
  chunk_pass.chunk_step,
  static_argnames=("window", "sampler", "scheme", "jump_to"),
)


def _as_chunks(video: jax.Array, chunk: int) -> jax.Array:
  """[B, T, ...] to [G, B, chunk, ...]."""
  split = video.reshape(len(video), -1, chunk, *video.shape[2:])
  return split.swapaxes(0, 1)


@pytest.mark.parametrize("name", _FILES)
def test_every_call_equals_the_original(name: str) -> None:
  run = Run(name)
  model, cache, velocities = goldens.model(run.file), run.empty_cache(), []
  for m in range(run.chunks):
    cache = run.enter(cache, m)
    _check_frames(run, m, cache)
    for k, t in enumerate(run["t"][m]):
      velocity, entries, positions = _call(
        model,
        cache,
        run.latents("x")[m, k],
        jnp.float32(t),
        run.text(m),
        window=run.window,
        scheme=run.scheme,
        jump_to=run.jump_to(m),
      )
      velocities.append(velocity)
    _check_positions(run, m, positions)
    cache = _commit(cache, entries, window=run.window)
  golden = run.latents("v")
  ours = np.stack(velocities).reshape(golden.shape)
  tolerances.assert_close(ours, golden, "golden")
  _check_entries(run, cache)


def _check_frames(run: Run, m: int, cache: cache_lib.Cache) -> None:
  """Our cache holds what the chunk sees beside itself, in any order."""
  chunk = run.window.chunk_frames
  own = range(m * chunk, (m + 1) * chunk)
  golden = {int(f) for f in run["slot_frames"][m]} - {window_lib.EMPTY}
  for row in np.asarray(cache.frame):
    held = {int(f) for f in row} - {window_lib.EMPTY}
    assert held | {*own} == golden
    assert not held & {*own}


def _check_positions(run: Run, m: int, positions: window_lib.Positions) -> None:
  """Window-relative coordinates; absolute ones are not recorded."""
  if run.scheme == "absolute":
    return
  golden_keys = run["key_index"][m, -1]
  valid = np.asarray(positions.visible)[0, 0]
  keys = np.asarray(positions.key)[0, 0][valid]
  assert sorted(keys) == sorted(golden_keys[golden_keys >= 0])
  queries = np.asarray(positions.query)[0, 0]
  np.testing.assert_array_equal(queries, run["query_index"][m, -1])


def _check_entries(run: Run, cache: cache_lib.Cache) -> None:
  """What our cache holds in the end is in the original's buffer as well."""
  slots = [int(f) for f in run["slot_frames"][-1]]
  entries = cache.entries
  for name in ("key", "value"):
    if name == "key" and run.scheme == "absolute":
      continue  # The original's keys are rotated.
    ours = np.asarray(getattr(entries, name))  # layers B slots P E
    golden = run[f"final_{name[0]}"]
    golden = golden.reshape(*golden.shape[:2], len(slots), *ours.shape[3:])
    for i, frame in enumerate(np.asarray(cache.frame)[0]):
      if name == "key" and frame == 0:
        continue  # The original stores this one rotated.
      theirs = golden[:, :, slots.index(int(frame))]
      tolerances.assert_close(ours[:, :, i], theirs, "golden")


@pytest.mark.parametrize("name", _ABSOLUTE)
def test_free_rollout_equals_the_original(name: str) -> None:
  run = Run(name)
  cache = run.empty_cache()
  keys = jax.random.split(jax.random.key(0), cache.frame.shape[0])
  state = rollout.Rollout(cache, keys, jnp.zeros((), jnp.int32))
  golden = _as_chunks(run.latents("latents"), run.window.chunk_frames)
  latents, _ = rollout.scan_chunks(
    goldens.model(run.file),
    state,
    run.text(0),
    run.noise(),
    window=run.window,
    sampler=run.sampler(),
    chunks=run.chunks,
    frame=golden.shape[3:],
    scheme=run.scheme,
  )
  tolerances.assert_close(latents, golden, "golden")


@pytest.mark.parametrize("name", _RELATIVE)
def test_free_rollout_with_new_scenes_equals_the_original(name: str) -> None:
  run = Run(name)
  cache, noise, latents = run.empty_cache(), run.noise(), []
  for m in range(run.chunks):
    x0, cache = _chunk_step(
      goldens.model(run.file),
      run.enter(cache, m),
      jax.tree.map(lambda x, m=m: x[m], noise),
      run.text(m),
      window=run.window,
      sampler=run.sampler(),
      jump_to=run.jump_to(m),
    )
    latents.append(x0)
  golden = _as_chunks(run.latents("latents"), run.window.chunk_frames)
  tolerances.assert_close(np.stack(latents), golden, "golden")


def test_samplers_levels_are_the_recorded_timesteps() -> None:
  for name in _FILES:
    run = Run(name)
    for recorded in run["t"]:
      sigmas = (*run.sampler().sigmas, 0.0)
      np.testing.assert_allclose(np.multiply(sigmas, 1000), recorded, rtol=1e-6)
