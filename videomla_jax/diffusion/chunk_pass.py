"""One chunk against the rolling cache: coordinates, passes, commit.

docs/method.md, section 9.1. Denoising passes read the cache and never
write it; only the pass over the clean chunk at t = 0 commits. A sampler may ask
that the last denoising pass does so in its place.
"""

from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PyTree

from videomla_jax.diffusion import sampling
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import wan
from videomla_jax.models import wan_block
from videomla_jax.models import wan_config
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
  """Returns temporal coordinates of the next chunk and of what it sees.

  Args:
    cache: The cache before the chunk.
    length: Frames of the chunk.
    window: The window that the cache was made for.
    scheme: How frames are counted, see `Window.positions`.
    jump_to: Coordinate of the chunk's first frame, if it is to be far from its
      context: a cut (Infinity-RoPE).
  """
  past, first = window.positions(cache.frame, cache.next_frame, scheme=scheme)
  # Only the chunk moves; what it sees keeps its coordinates.
  if jump_to is not None:
    first = jnp.full_like(first, jump_to)
  query = first[:, None] + jnp.arange(length, dtype=jnp.int32)
  visible = [cache_lib.valid(cache), jnp.ones_like(query, bool)]
  return window_lib.Positions(
    query=query[:, None],
    key=jnp.concatenate([past, query], axis=1)[:, None],
    visible=jnp.concatenate(visible, axis=1)[:, None],
  )


class Context(TypedDict):
  """The arguments by which the network sees the cache."""

  context_of: wan_block.ContextOf
  history: PyTree


def context_of(cache: cache_lib.Cache) -> Context:
  """Returns what a chunk sees: the cache, if it has slots, and itself."""

  def with_past(own: PyTree, past: PyTree) -> list[PyTree]:
    # Cache and chunk stay apart: joining them would copy the cache.
    # The network has an axis of chunks, of which a rollout runs one at a time.
    history = jax.tree.map(lambda x: x[:, None], past)
    return [history, own] if cache.frame.shape[1] else [own]

  return dict(context_of=with_past, history=cache.entries)


def _by_frame(
  timestep: Float32[Array, "*#B"], latents: Latents
) -> Float32[Array, "B 1 T"]:
  """Repeats a timestep of all rows, or of each row, for every frame."""
  shape = (latents.shape[0], 1, latents.shape[1])
  return jnp.broadcast_to(timestep.reshape(-1, 1, 1), shape)


def velocity_and_entries(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  latents: Latents,
  timestep: Float32[Array, "*#B"],
  text: Float[Array, "B M E"],
  positions: window_lib.Positions,
) -> tuple[Latents, PyTree]:
  """Runs one pass of a chunk that reads the cache; it has gradients.

  Args:
    model: The network.
    cache: Context.
    latents: The chunk, noisy or clean.
    timestep: 0..1000, one for all rows or one for each.
    text: Text embeddings.
    positions: Coordinates, see `positions_of`.

  Returns:
    Velocity, and the chunk's entries for `cache.append`.
  """
  velocity, entries = model.velocity_and_entries(
    latents[:, None],
    _by_frame(timestep, latents),
    text,
    positions,
    **context_of(cache),
  )
  return velocity[:, 0], jax.tree.map(lambda e: e[:, :, 0], entries)


def velocity_and_history(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  latents: Latents,
  timestep: Float32[Array, "*#B"],
  text: wan.Text,
  positions: window_lib.Positions,
  *,
  store: wan.Store = wan.read_only,
) -> tuple[Latents, PyTree]:
  """Runs one pass of a chunk without gradients, in less memory.

  Args:
    model: The network.
    cache: Context.
    latents: The chunk, noisy or clean.
    timestep: 0..1000, one for all rows or one for each.
    text: Text embeddings.
    positions: Coordinates, see `positions_of`.
    store: Puts the entries of a layer into those of the cache.

  Returns:
    Velocity, and the entries of the cache after the pass.
  """
  velocity, history = model.velocity_and_history(
    latents[:, None],
    _by_frame(timestep, latents),
    text,
    positions,
    store=store,
    **context_of(cache),
  )
  return velocity[:, 0], history


def clean_entries(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  latents: Latents,
  text: Float[Array, "B M E"],
  *,
  window: window_lib.Window,
) -> PyTree:
  """Returns the entries of clean latents, for `cache.append`."""
  positions = positions_of(cache, latents.shape[1], window=window)
  zero = jnp.zeros((), jnp.float32)
  return velocity_and_entries(model, cache, latents, zero, text, positions)[1]


def repeat(x: Array, sampler: sampling.Sampler) -> Array:
  """Copies latents for the conditional and the unconditional rows."""
  return jnp.concatenate([x] * sampler.rows_per_video)


def commit(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  latents: Latents,
  text: wan.Text,
  *,
  window: window_lib.Window,
  scheme: window_lib.Scheme = "window",
  jump_to: int | None = None,
) -> cache_lib.Cache:
  """Runs clean latents at t = 0 and stores their entries.

  Args:
    model: The network.
    cache: The cache before the chunk.
    latents: The clean chunk.
    text: Text embeddings.
    window: Which frames the cache keeps.
    scheme: How frames are counted, see `Window.positions`.
    jump_to: Coordinate of a cut, see `positions_of`.

  Returns:
    The cache after the chunk.
  """
  length = latents.shape[1]
  positions = positions_of(
    cache, length, window=window, scheme=scheme, jump_to=jump_to
  )
  update = window.update(cache.frame, cache.next_frame, length)
  zero = jnp.zeros((), jnp.float32)
  _, entries = velocity_and_history(
    model, cache, latents, zero, text, positions, store=_store(update)
  )
  return cache_lib.advance(cache, entries, update)


def _store(update: window_lib.Update) -> wan.Store:
  """Returns what writes the entries of a layer right after it was read.

  Entries of all layers at once would be 63 MB more at 480p.

  Args:
    update: How the chunk changes what is stored.
  """

  def store(stored: PyTree, own: PyTree, layer: Array | int) -> PyTree:
    own = jax.tree.map(lambda e: e[:, 0], own)
    return cache_lib.write(stored, own, update, layer)

  return store


def denoise(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  noise: sampling.Noise,
  text: wan.Text,
  *,
  window: window_lib.Window,
  sampler: sampling.Sampler,
  scheme: window_lib.Scheme = "window",
  jump_to: int | None = None,
) -> Latents:
  """Denoises one chunk against the cache, the sampler's passes in a loop.

  Args:
    model: The network.
    cache: The cache before the chunk, which stays as it is.
    noise: Start and fresh noise.
    text: Embeddings, with guidance the unconditional ones after the
      conditional ones.
    window: The window that the cache was made for.
    sampler: How to denoise.
    scheme: How frames are counted, see `Window.positions`.
    jump_to: Coordinate of a cut, see `positions_of`.

  Returns:
    Clean latents of the chunk.
  """
  # Coordinates are the same for all calls, so the loop does not repeat them.
  length = noise.start.shape[1]
  positions = positions_of(
    cache, length, window=window, scheme=scheme, jump_to=jump_to
  )

  def velocity_of(x: Latents, sigma: Array) -> Latents:
    level = sigma * wan_config.MAX_TIMESTEP
    return velocity_and_history(model, cache, x, level, text, positions)[0]

  return sampling.solve(velocity_of, noise, sampler=sampler)


def _denoise_and_commit(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  noise: sampling.Noise,
  text: wan.Text,
  *,
  window: window_lib.Window,
  sampler: sampling.Sampler,
  scheme: window_lib.Scheme = "window",
  jump_to: int | None = None,
) -> tuple[Latents, cache_lib.Cache]:
  """Denoises as `denoise` does, and stores the entries of the last pass.

  They are those of latents that still have the noise of the last level.
  """
  length = noise.start.shape[1]
  positions = positions_of(
    cache, length, window=window, scheme=scheme, jump_to=jump_to
  )
  update = window.update(cache.frame, cache.next_frame, length)
  entries: PyTree = None

  def run(x: Latents, sigma: Array, store: wan.Store) -> tuple[Latents, PyTree]:
    level = sigma * wan_config.MAX_TIMESTEP
    return velocity_and_history(
      model, cache, x, level, text, positions, store=store
    )

  def reading(x: Latents, sigma: Array) -> Latents:
    return run(x, sigma, wan.read_only)[0]

  def storing(x: Latents, sigma: Array) -> Latents:
    nonlocal entries  # `guided` hands on velocities alone
    velocity, entries = run(x, sigma, _store(update))
    return velocity

  def step(
    state: sampling.State, call: sampling.Call, network: Any = reading
  ) -> tuple[sampling.State, None]:
    velocity = sampling.guided(network, sampler)(state.x, call.sigma)
    return sampling.step(sampler, state, velocity, call), None

  calls = sampling.calls(sampler, noise)
  first, last = (
    jax.tree.map(lambda leaf, at=at: leaf[at], calls)
    for at in (slice(None, -1), -1)
  )
  state, _ = jax.lax.scan(step, sampling.start(sampler, noise), first)
  state, _ = step(state, last, storing)
  return state.x, cache_lib.advance(cache, entries, update)


def with_keys_of_text(model: wan.WanDiT, text: wan.Text) -> wan.Text:
  """Makes the keys and values of the text once, unless memory is spared.

  They are 94 MB per row at 1.3B, and further passes then neither project the
  text nor normalise it.

  Args:
    model: The network.
    text: Text embeddings, or what this function made of them.
  """
  if model.config.spare_memory or isinstance(text, wan_block.TextKeys):
    return text
  return model.text_keys(text)


def chunk_step(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  noise: sampling.Noise,
  text: wan.Text,
  *,
  window: window_lib.Window,
  sampler: sampling.Sampler,
  scheme: window_lib.Scheme = "window",
  jump_to: int | None = None,
) -> tuple[Latents, cache_lib.Cache]:
  """Generates one chunk and commits it.

  Args:
    model: The network.
    cache: The cache before the chunk.
    noise: Start and fresh noise.
    text: Embeddings, with guidance the unconditional ones after the
      conditional ones.
    window: Which frames the cache keeps.
    sampler: How to denoise.
    scheme: How frames are counted, see `Window.positions`.
    jump_to: Temporal coordinate of a cut, if this chunk starts a new scene.

  Returns:
    Clean latents of the chunk and the cache after it.
  """
  where: dict[str, Any] = dict(window=window, scheme=scheme, jump_to=jump_to)
  text = with_keys_of_text(model, text)
  if sampler.commit == "last_pass":
    return _denoise_and_commit(
      model, cache, noise, text, sampler=sampler, **where
    )
  # Both kinds of rows commit the guided chunk, as both saw it denoised.
  x0 = denoise(model, cache, noise, text, sampler=sampler, **where)
  return x0, commit(model, cache, repeat(x0, sampler), text, **where)
