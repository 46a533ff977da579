"""One chunk against the rolling cache: coordinates, passes, commit.

spec/rollout.md sections 5, 6 and 13. Denoising passes read the cache and never
write it; only the pass over the clean chunk at t = 0 commits.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PyTree

from videomla_jax.diffusion import flow
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import wan

Latents = sampling.Latents
Positions = Literal["window", "absolute"]


def place_of(
  cache: cache_lib.Cache, length: int, *, positions: Positions = "window"
) -> wan.Place:
  """Temporal coordinates of the next chunk and of what it sees.

  Window-relative coordinates count visible frames, oldest first, so no
  coordinate ever leaves the range of training. Absolute ones are those of the
  first implementations.
  """
  valid = cache_lib.valid(cache)
  if positions == "window":
    past, first = cache_lib.rank(cache), valid.sum(-1, dtype=jnp.int32)
  else:
    past, first = cache.frame, cache.next_frame
  query = first[:, None] + jnp.arange(length, dtype=jnp.int32)
  return wan.Place(
    query_frame=query[:, None],
    key_frame=jnp.concatenate([past, query], axis=1)[:, None],
    key_valid=jnp.concatenate([valid, jnp.ones_like(query, bool)], axis=1)[
      :, None
    ],
  )


def jump(place: wan.Place, length: int, *, to: int) -> wan.Place:
  """Moves the chunk to a far temporal coordinate: a cut (Infinity-RoPE)."""
  target = to + jnp.arange(length, dtype=jnp.int32)
  return place._replace(
    query_frame=place.query_frame.at[..., :].set(target),
    key_frame=place.key_frame.at[..., -length:].set(target),
  )


def forward(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  latents: Latents,
  timestep: Float32[Array, "*#B"],
  text: Float[Array, "B M E"],
  place: wan.Place,
  store: wan.Store | None = None,
) -> tuple[Latents, PyTree]:
  """One pass of a chunk that reads the cache and does not write it.

  Args:
    model: The network.
    cache: Context.
    latents: The chunk, noisy or clean.
    timestep: 0..1000, one for all or one per stream.
    text: Text embeddings.
    place: Coordinates, see `place_of`.
    store: Given, the chunk's entries go into the cache's, layer by layer; see
      `wan.WanDiT`.

  Returns:
    Velocity, and the chunk's entries for `cache.commit`; or, with `store`, the
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
    place,
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
  window: cache_lib.Window,
  positions: Positions = "window",
  jump_to: int | None = None,
) -> cache_lib.Cache:
  """Runs clean latents at t = 0 and stores their entries."""
  place = place_of(cache, latents.shape[1], positions=positions)
  if jump_to is not None:
    place = jump(place, latents.shape[1], to=jump_to)
  slot = cache_lib.slots_of(cache, latents.shape[1], window=window)

  def store(stored, own, layer):
    own = jax.tree.map(lambda e: e[:, 0], own)
    return cache_lib.write(stored, own, slot, layer)

  zero = jnp.zeros((), jnp.float32)
  _, entries = forward(model, cache, latents, zero, text, place, store)
  return cache_lib.advance(cache, entries, slot)


def denoise(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  noise: sampling.Noise,
  text: Float[Array, "R M E"],
  *,
  sampler: sampling.Sampler,
  positions: Positions = "window",
  jump_to: int | None = None,
) -> Latents:
  """Denoises one chunk against the cache; the sampler's passes in a loop."""
  place = place_of(cache, noise.start.shape[1], positions=positions)
  if jump_to is not None:
    place = jump(place, noise.start.shape[1], to=jump_to)

  def velocity_of(x, sigma):
    level = sigma * flow.MAX_TIMESTEP
    return forward(model, cache, x, level, text, place, wan.read_only)[0]

  return sampling.solve(velocity_of, noise, sampler=sampler)


def chunk_step(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  noise: sampling.Noise,
  text: Float[Array, "R M E"],
  *,
  window: cache_lib.Window,
  sampler: sampling.Sampler,
  positions: Positions = "window",
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
    positions: See `place_of`.
    jump_to: Temporal coordinate of a cut, if this chunk starts a new scene.

  Returns:
    Clean latents of the chunk and the cache after it.
  """
  where = dict(positions=positions, jump_to=jump_to)
  x0 = denoise(model, cache, noise, text, sampler=sampler, **where)
  clean = repeat(x0, sampler)
  return x0, commit(model, cache, clean, text, window=window, **where)
