"""A commit stores the entries of its pass; evicted frames have no influence."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tiny_rollout
from tests import tolerances
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import window as window_lib
from videomla_jax.ops import device

B, FRAME, WINDOW = tiny_rollout.B, tiny_rollout.FRAME, tiny_rollout.WINDOW
_commit = jax.jit(chunk_pass.commit, static_argnames="window")


@pytest.mark.parametrize("kind", ["latent", "dense"])
@pytest.mark.parametrize(
  ("scan_blocks", "sink"),
  [(True, "first"), (False, "first"), (True, "average")],
)
def test_a_commit_stores_the_entries_of_its_pass(seed, kind, scan_blocks, sink):
  window = dataclasses.replace(WINDOW, sink=sink, sink_decay=0.7)
  rng = np.random.default_rng(seed)
  model, text, _, _ = tiny_rollout.setup(
    seed, kind=kind, scan_blocks=scan_blocks
  )
  cache = rollout.empty_cache(
    model, batch=B, frame=FRAME, window=window, max_frames=99
  )
  for _ in range(2):  # the second one reads the first and wraps the ring
    x0 = tiny_model.normal(rng, B, 3, *FRAME)
    positions = chunk_pass.positions_of(cache, 3, window=window)
    _, entries = jax.jit(chunk_pass.velocity_and_entries)(
      model, cache, x0, jnp.zeros(()), text, positions
    )
    expected = cache_lib.append(cache, entries, window=window)
    cache = _commit(model, cache, x0, text, window=window)
    np.testing.assert_array_equal(cache.frame, expected.frame)
    jax.tree.map(tolerances.assert_close, cache.entries, expected.entries)


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_the_last_pass_takes_the_place_of_the_commit(seed, guidance):
  model, text, keys, _ = tiny_rollout.setup(seed)
  sampler = sampling.euler(3, shift=2.0, guidance=guidance)
  rows = B * sampler.rows_per_video
  text = jnp.resize(text, (rows, *text.shape[1:]))
  noise = sampling.chunk_noise(
    keys, jnp.asarray(0), shape=(3, *FRAME), sampler=sampler
  )
  empty = functools.partial(
    rollout.empty_cache, model, batch=rows, frame=FRAME, window=WINDOW
  )
  run = jax.jit(chunk_pass.chunk_step, static_argnames=("window", "sampler"))
  x0, _ = run(
    model, empty(max_frames=99), noise, text, window=WINDOW, sampler=sampler
  )
  cheap = dataclasses.replace(sampler, commit="last_pass")
  found, cache = run(
    model, empty(max_frames=99), noise, text, window=WINDOW, sampler=cheap
  )
  # The chunk is the same; it was made before anything was stored.
  tolerances.assert_close(found, x0)
  # What is stored is the chunk as the last call saw it, at its level.
  before, level = sampler.sigmas[:-1], jnp.float32(sampler.sigmas[-1])
  network = lambda x, sigma: chunk_pass.velocity_and_entries(
    *(model, empty(max_frames=99), x, 1000 * sigma, text),
    chunk_pass.positions_of(empty(max_frames=99), 3, window=WINDOW),
  )
  seen = sampling.solve(
    lambda x, sigma: network(x, sigma)[0],
    noise,
    sampler=sampler,
    num_calls=jnp.asarray(len(before)),
  )
  _, entries = network(chunk_pass.repeat(seen, sampler), level[None])
  expected = cache_lib.append(empty(max_frames=99), entries, window=WINDOW)
  np.testing.assert_array_equal(cache.frame, expected.frame)
  jax.tree.map(tolerances.assert_close, cache.entries, expected.entries)


def test_a_tpu_makes_and_stores_the_same_chunks(seed, monkeypatch):
  model, text, keys, sampler = tiny_rollout.setup(seed)
  noise = sampling.chunk_noise(
    keys, jnp.asarray(0), shape=(3, *FRAME), sampler=sampler
  )

  def chunks():
    cache = rollout.empty_cache(
      model, batch=B, frame=FRAME, window=WINDOW, max_frames=99
    )
    # A new function, which is traced anew for either device.
    run = jax.jit(
      lambda *args: chunk_pass.chunk_step(*args, window=WINDOW, sampler=sampler)
    )
    made = []
    for _ in range(3):  # the last one overwrites a part of the first
      x0, cache = run(model, cache, noise, text)
      made.append(x0)
    program = run.lower(model, cache, noise, text).as_text()
    return (made, cache), program.count('"stablehlo.scatter"(')

  expected, scatters = chunks()
  here = device.Device(kind="TPU v5", platform="tpu")
  monkeypatch.setattr(device, "current", lambda: here)
  found, fewer = chunks()
  jax.tree.map(tolerances.assert_close, found, expected)
  # No scatter writes the entries, whose layout it would change on a TPU.
  assert fewer == scatters - len(jax.tree.leaves(expected[1].entries))


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
    return chunk_pass.velocity_and_entries(
      model, cache, chunk, timestep, text, positions
    )[0]

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
  model, text, _, _ = tiny_rollout.setup(seed, kind=kind, num_layers=1)
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
