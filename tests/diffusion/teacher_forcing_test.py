"""Teacher forcing against the cached rollout, causality, the plan."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import teacher_forcing
from videomla_jax.models import attention
from videomla_jax.models import window as window_lib

B, CHUNK, CHUNKS = 2, 3, 4
FRAMES = CHUNK * CHUNKS
WINDOWS = [(0, 3), (1, 5), (1, 6), (1, 9), (3, 6), (0, None)]
AVERAGING = [(1, 5), (1, 3), (2, 6), (3, 6)]
# A policy that is added is compared with the defaults of its fields.
ADDED = [
  (1, 6, x) for x in window_lib.POLICIES if x not in ("first", "average")
]

_velocity = jax.jit(
  teacher_forcing.velocity, static_argnames=("window", "first_chunk")
)
_loss = jax.jit(teacher_forcing.loss, static_argnames=("window", "first_chunk"))


@functools.partial(jax.jit, static_argnames="window")
def _rollout_chunk(model, cache, clean, noisy, timestep, text, *, window):
  """Velocity of a chunk against the cache, which then takes the chunk."""
  positions = chunk_pass.positions_of(cache, clean.shape[1], window=window)
  velocity, _ = chunk_pass.velocity_and_entries(
    model, cache, noisy, timestep, text, positions
  )
  return velocity, chunk_pass.commit(model, cache, clean, text, window=window)


def _window(sink, local, policy="first"):
  return window_lib.Window(
    chunk_frames=CHUNK,
    sink_frames=sink,
    local_frames=local,
    sink=policy,
    sink_decay=0.7,
  )


def _inputs(rng, frames=FRAMES):
  """Clean and noisy latents, timesteps of examples and chunks, text."""
  shape = (B, frames, *tiny_model.FRAME)
  timestep = np.repeat(rng.uniform(1, 1000, (B, frames // CHUNK)), CHUNK, 1)
  return (
    tiny_model.normal(rng, *shape),
    tiny_model.normal(rng, *shape),
    jnp.asarray(timestep, jnp.float32),
    tiny_model.normal(rng, B, *tiny_model.TEXT),
  )


def _by_rollout(model, clean, noisy, timestep, text, window, padding):
  """Chunk by chunk through the cache, without the padding frames."""
  clean, noisy, timestep = map(np.asarray, (clean, noisy, timestep))
  cache = rollout.empty_cache(
    model,
    batch=B,
    frame=tiny_model.FRAME,
    window=window,
    max_frames=FRAMES,
  )
  velocities = []
  for end in range(CHUNK, FRAMES + 1, CHUNK):
    chunk = slice(max(end - CHUNK, padding), end)
    velocity, cache = _rollout_chunk(
      model,
      cache,
      clean[:, chunk],
      noisy[:, chunk],
      timestep[:, end - 1],
      text,
      window=window,
    )
    velocities.append(velocity)
  return velocities


@pytest.mark.parametrize("kind", [*attention.SELF_ATTENTION])
@pytest.mark.parametrize("first_chunk", [None, 1])
@pytest.mark.parametrize(
  ("sink", "local", "policy"),
  [
    *((*w, "first") for w in WINDOWS),
    *((*w, "average") for w in AVERAGING),
    *ADDED,
  ],
)
def test_every_chunk_equals_the_cached_rollout(
  seed, kind, first_chunk, sink, local, policy
):
  rng = np.random.default_rng(seed)
  model, window = tiny_model.build(kind, rng), _window(sink, local, policy)
  inputs = _inputs(rng)
  padding = 0 if first_chunk is None else CHUNK - first_chunk
  expected = _by_rollout(model, *inputs, window, padding)
  out = _velocity(model, *inputs, window=window, first_chunk=first_chunk)
  out = np.asarray(out)
  for m, velocity in enumerate(expected):
    chunk = slice(max(m * CHUNK, padding), (m + 1) * CHUNK)
    tolerances.assert_close(out[:, chunk], velocity)


@functools.partial(jax.jit, static_argnames=("window", "first_chunk"))
def _influence(model, clean, noisy, timestep, text, cotangent, **kwargs):
  """Gradient of a weighted sum of velocities to clean and noisy latents."""

  def run(clean, noisy, text):
    return teacher_forcing.velocity(
      model, clean, noisy, timestep, text, **kwargs
    )

  return jax.vjp(run, clean, noisy, text)[1](cotangent)


def _seen(gradient):
  """Frames with any influence; others have exactly none."""
  return set(np.flatnonzero(np.asarray(gradient != 0).any((0, 2, 3, 4))))


@pytest.mark.parametrize("kind", ["latent", "dense"])
@pytest.mark.parametrize("first_chunk", [None, 1])
@pytest.mark.parametrize(("sink", "local"), [(1, 5), (0, 3), (0, None)])
def test_chunks_see_their_clean_history_and_nothing_else(
  seed, kind, first_chunk, sink, local
):
  rng = np.random.default_rng(seed)
  # In deeper layers, kept entries know of evicted frames; one layer is exact.
  model, window = (
    tiny_model.build(kind, rng, num_layers=1),
    _window(sink, local),
  )
  inputs = _inputs(rng)
  given = dict(window=window, first_chunk=first_chunk)
  plan = teacher_forcing.plan(FRAMES, **given)
  for m in range(CHUNKS):
    chunk = slice(m * CHUNK, (m + 1) * CHUNK)
    trained = jnp.asarray(plan.trained[m])[None, :, None, None, None]
    pull = jnp.zeros(inputs[0].shape)
    pull = pull.at[:, chunk].set(
      jnp.where(trained, tiny_model.normal(rng, *pull[:, chunk].shape), 0.0)
    )
    clean, noisy, _ = _influence(model, *inputs, pull, **given)
    assert _seen(clean) == set(plan.history[m][plan.history[m] >= 0])
    own = np.arange(FRAMES)[chunk]
    assert _seen(noisy) == set(own[plan.trained[m]])


@pytest.mark.parametrize("kind", ["latent", "dense"])
def test_two_layers_reach_what_the_kept_frames_saw(seed, kind):
  rng = np.random.default_rng(seed)
  model, window = tiny_model.build(kind, rng), _window(1, 5)
  inputs = _inputs(rng)
  plan = teacher_forcing.plan(FRAMES, window=window)
  for m in range(CHUNKS):
    chunk = slice(m * CHUNK, (m + 1) * CHUNK)
    pull = jnp.zeros(inputs[0].shape).at[:, chunk].set(1.0)
    clean, noisy, _ = _influence(
      model, *inputs, pull, window=window, first_chunk=None
    )
    # Kept entries remember evicted frames, one hop for the second layer.
    direct = {int(f) for f in plan.history[m] if f >= 0}
    chunks = {f // CHUNK for f in direct}
    hop = {int(f) for c in chunks for f in plan.history[c] if f >= 0}
    own = {f for c in chunks for f in range(c * CHUNK, (c + 1) * CHUNK)}
    assert _seen(clean) == direct | hop | own
    assert max(_seen(clean), default=-1) < m * CHUNK
    assert _seen(noisy) == set(range(m * CHUNK, (m + 1) * CHUNK))


def test_rows_of_a_batch_do_not_mix(seed):
  rng = np.random.default_rng(seed)
  model, window = tiny_model.build("latent", rng), _window(1, 5)
  inputs = _inputs(rng)
  pull = jnp.zeros(inputs[0].shape).at[0].set(1.0)
  gradients = _influence(model, *inputs, pull, window=window, first_chunk=None)
  for gradient in gradients:
    assert (gradient[1] == 0).all()
    assert (gradient[0] != 0).any()


@pytest.mark.parametrize("first_chunk", [1, 2])
def test_loss_ignores_padding_frames(seed, first_chunk):
  rng = np.random.default_rng(seed)
  model = tiny_model.build("latent", rng)
  clean, noise, timestep, text = _inputs(rng)
  given = dict(window=_window(1, 6), first_chunk=first_chunk)
  padding = CHUNK - first_chunk
  dirty = [x.at[:, :padding].set(1e4) for x in (clean, noise)]
  sigma = timestep / 1000
  total, per_frame = _loss(model, clean, noise, sigma, text, **given)
  other, _ = _loss(model, *dirty, sigma, text, **given)
  assert total == other
  expected = np.asarray(per_frame)[:, padding:].mean()
  assert float(total) == pytest.approx(expected, rel=1e-5)


def test_loss_weight_multiplies_frames(seed):
  rng = np.random.default_rng(seed)
  model = tiny_model.build("latent", rng)
  clean, noise, timestep, text = _inputs(rng)
  weight = jnp.asarray(rng.random((B, FRAMES)), jnp.float32)
  total, per_frame = _loss(
    model,
    clean,
    noise,
    timestep / 1000,
    text,
    window=_window(1, 6),
    weight=weight,
  )
  expected = float((per_frame * weight).mean())
  assert float(total) == pytest.approx(expected, rel=1e-5)


def test_perfect_velocity_has_no_loss(seed, monkeypatch):
  rng = np.random.default_rng(seed)
  clean, noise, timestep, text = _inputs(rng)
  perfect = lambda *args, **kwargs: noise - clean
  monkeypatch.setattr(teacher_forcing, "velocity", perfect)
  model = tiny_model.build("latent", rng)
  total, _ = teacher_forcing.loss(
    model, clean, noise, timestep / 1000, text, window=_window(1, 6)
  )
  assert total == 0


@hypothesis.given(
  chunk=st.integers(1, 4),
  chunks=st.integers(1, 6),
  sink=st.integers(0, 5),
  history=st.one_of(st.none(), st.integers(0, 8)),
  first=st.integers(0, 4),
)
def test_plan_is_the_windowed_mask_of_the_specification(
  chunk, chunks, sink, history, first
):
  local = None if history is None else chunk + history
  window = window_lib.Window(
    chunk_frames=chunk, sink_frames=sink, local_frames=local
  )
  first = min(first, chunk) or chunk
  padding = chunk - first
  plan = teacher_forcing.plan(chunk * chunks, window=window, first_chunk=first)
  for m in range(chunks):
    end = (m + 1) * chunk  # e of docs/method.md, Eq. (10.1)
    allowed = [
      frame
      for frame in range(padding, m * chunk)
      if frame - padding < sink or local is None or frame >= end - local
    ]
    listed = plan.history[m][plan.history[m] >= 0]
    assert listed.tolist() == allowed
    own = [f for f in range(m * chunk, end) if f >= padding]
    assert plan.trained[m].sum() == len(own)
    # Coordinates count visible frames, oldest first, without a gap.
    keys = plan.positions.key[0, m][plan.positions.visible[0, m]]
    assert keys.tolist() == list(range(len(allowed) + len(own)))
    queries = plan.positions.query[0, m][plan.trained[m]]
    assert queries.tolist() == keys[len(allowed) :].tolist()


@pytest.mark.parametrize(
  ("frames", "first_chunk", "message"),
  [
    (7, None, "clip of 7 frames must be a positive multiple of chunk_frames=3"),
    (0, None, "clip of 0 frames"),
    (6, 0, "first_chunk=0 must be between 1 and chunk_frames=3"),
    (6, 4, "first_chunk=4"),
  ],
)
def test_bad_clip_is_refused_with_the_rule(frames, first_chunk, message):
  with pytest.raises(ValueError, match=message):
    teacher_forcing.plan(frames, window=_window(1, 6), first_chunk=first_chunk)


def test_noise_levels_are_equal_within_a_chunk_and_never_zero(seed):
  sigma = teacher_forcing.sample_sigma(
    jax.random.key(seed), batch=500, chunks=4, chunk_frames=3, s=5.0
  )
  sigma = np.asarray(sigma).reshape(500, 4, 3)
  assert (sigma == sigma[..., :1]).all()
  assert sigma.min() > 0
  assert sigma.max() <= 1
  # The median of S(u; 5) is S(0.5; 5) = 5/6.
  assert np.median(sigma) == pytest.approx(5 / 6, abs=0.03)
