"""One chunk against the rolling cache: coordinates, passes, commit.

spec/rollout.md sections 5, 6 and 13. Denoising passes read the cache and never
write it; only the pass over the clean chunk at t = 0 commits.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PyTree

from videomla_jax.diffusion import flow
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib

Latents = sampling.Latents


def positions_of(
  cache: cache_lib.Cache,
  length: int,
  *,
  window: window_lib.Window,
  scheme: window_lib.Scheme = "window",
  jump_to: int | None = None,
) -> window_lib.Positions:
  """Temporal coordinates of the next chunk and of what it sees.

  Args:
    cache: The cache before the chunk.
    length: Frames of the chunk.
    window: The window that the cache was made for.
    scheme: How frames are counted, see `Window.positions`.
    jump_to: Coordinate of the chunk's first frame, if it is to be far from its
      context: a cut (Infinity-RoPE).
  """
  past, first = window.positions(cache.frame, cache.next_frame, scheme=scheme)
  if jump_to is not None:
    first = jnp.full_like(first, jump_to)
  query = first[:, None] + jnp.arange(length, dtype=jnp.int32)
  visible = [cache_lib.valid(cache), jnp.ones_like(query, bool)]
  return window_lib.Positions(
    query=query[:, None],
    key=jnp.concatenate([past, query], axis=1)[:, None],
    visible=jnp.concatenate(visible, axis=1)[:, None],
  )


def forward(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  latents: Latents,
  timestep: Float32[Array, "*#B"],
  text: Float[Array, "B M E"],
  positions: window_lib.Positions,
  store: wan.Store | None = None,
) -> tuple[Latents, PyTree]:
  """One pass of a chunk that reads the cache and does not write it.

  Args:
    model: The network.
    cache: Context.
    latents: The chunk, noisy or clean.
    timestep: 0..1000, one for all or one per stream.
    text: Text embeddings.
    positions: Coordinates, see `positions_of`.
    store: Given, the chunk's entries go into the cache's, layer by layer; see
      `wan.WanDiT`.

  Returns:
    Velocity, and the chunk's entries for `cache.append`; or, with `store`, the
    cache's.
  """

  def context_of(own, past):
    history = jax.tree.map(lambda x: x[:, None], past)
    return [history, own] if cache.frame.shape[1] else [own]

  velocity, entries = model(
    latents[:, None],
    jnp.broadcast_to(
      timestep.reshape(-1, 1, 1), (latents.shape[0], 1, latents.shape[1])
    ),
    text,
    positions,
    context_of=context_of,
    history=cache.entries,
    store=store,
  )
  if store is None:
    entries = jax.tree.map(lambda e: e[:, :, 0], entries)
  return velocity[:, 0], entries


def repeat(x: Array, sampler: sampling.Sampler) -> Array:
  """Copies latents for the conditional and the unconditional stream."""
  return jnp.concatenate([x] * sampler.streams)


def commit(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  latents: Latents,
  text: Float[Array, "B M E"],
  *,
  window: window_lib.Window,
  scheme: window_lib.Scheme = "window",
  jump_to: int | None = None,
) -> cache_lib.Cache:
  """Runs clean latents at t = 0 and stores their entries."""
  length = latents.shape[1]
  positions = positions_of(
    cache, length, window=window, scheme=scheme, jump_to=jump_to
  )
  update = window.update(cache.frame, cache.next_frame, length)

  def store(stored, own, layer):
    own = jax.tree.map(lambda e: e[:, 0], own)
    return cache_lib.write(stored, own, update, layer)

  zero = jnp.zeros((), jnp.float32)
  _, entries = forward(model, cache, latents, zero, text, positions, store)
  return cache_lib.advance(cache, entries, update)


def denoise(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  noise: sampling.Noise,
  text: Float[Array, "R M E"],
  *,
  window: window_lib.Window,
  sampler: sampling.Sampler,
  scheme: window_lib.Scheme = "window",
  jump_to: int | None = None,
) -> Latents:
  """Denoises one chunk against the cache; the sampler's passes in a loop."""
  length = noise.start.shape[1]
  positions = positions_of(
    cache, length, window=window, scheme=scheme, jump_to=jump_to
  )

  def velocity_of(x, sigma):
    level = sigma * flow.MAX_TIMESTEP
    return forward(model, cache, x, level, text, positions, wan.read_only)[0]

  return sampling.solve(velocity_of, noise, sampler=sampler)


def chunk_step(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  noise: sampling.Noise,
  text: Float[Array, "R M E"],
  *,
  window: window_lib.Window,
  sampler: sampling.Sampler,
  scheme: window_lib.Scheme = "window",
  jump_to: int | None = None,
) -> tuple[Latents, cache_lib.Cache]:
  """Generates one chunk and commits it.

  Args:
    model: The network.
    cache: Window before the chunk.
    noise: Start and fresh noise.
    text: Embeddings, first conditional then unconditional with guidance.
    window: Which frames the cache keeps.
    sampler: How to denoise.
    scheme: How frames are counted, see `Window.positions`.
    jump_to: Temporal coordinate of a cut, if this chunk starts a new scene.

  Returns:
    Clean latents of the chunk and the cache after it.
  """
  where = dict(window=window, scheme=scheme, jump_to=jump_to)
  x0 = denoise(model, cache, noise, text, sampler=sampler, **where)
  clean = repeat(x0, sampler)
  return x0, commit(model, cache, clean, text, **where)
