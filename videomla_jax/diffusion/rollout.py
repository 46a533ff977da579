"""Chunk-autoregressive generation through the rolling cache.

spec/rollout.md. For every chunk: start from noise, denoise against the cache
in a few passes that only read it, then one pass over the clean chunk at t = 0
whose entries are committed. The cache has a fixed size, so minute ten costs
what second ten cost.

`generate` is one jit over all chunks; `stream` hands out chunk after chunk and
takes new prompts on the way.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PyTree

from videomla_jax import shapes
from videomla_jax.diffusion import flow
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import wan

Latents = sampling.Latents
Positions = Literal["window", "absolute"]


# The sampler and its noise are part of this module's surface.
Sampler = sampling.Sampler
Noise = sampling.Noise
few_step = sampling.few_step
euler = sampling.euler
chunk_noise = sampling.chunk_noise


class Rollout(NamedTuple):
  """State between two chunks; a pytree that can be saved and resumed.

  Attributes:
    cache: Entries of the window; twice the batch with guidance.
    keys: Random key of every example, never changed.
    chunk: Chunks generated so far.
  """

  cache: cache_lib.Cache
  keys: Array
  chunk: Array


def check_latents(
  model: wan.WanDiT, text: Array, latents: Latents, *, batch: int
) -> None:
  """Refuses latents or text that the network cannot take, before compiling."""
  config = model.config
  grid = model.grid(latents)
  given = latents.shape[-1]
  if given != config.channels:
    raise ValueError(
      f"latents have {given} channels but the model takes "
      f"{config.channels}; use the codec the model was trained with."
    )
  expected = config.learned_grid
  if expected is not None and (grid.rows, grid.columns) != expected:
    raise ValueError(
      f"latents have a token grid of {grid.rows} x {grid.columns} but the "
      f"model was trained on {expected[0]} x {expected[1]}; resize the video."
    )
  if text.ndim != 3 or text.shape[2] != config.text_dim:
    raise ValueError(
      f"text has shape {text.shape} but must be [batch, tokens, "
      f"{config.text_dim}]; encode the prompts first."
    )
  if latents.shape[0] != batch:
    raise ValueError(
      f"context has {latents.shape[0]} examples for {batch} prompts; give "
      "one clip per prompt."
    )


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
) -> tuple[Latents, PyTree]:
  """One pass of a chunk that reads the cache and does not write it.

  Args:
    model: The network.
    cache: Context.
    latents: The chunk, noisy or clean.
    timestep: 0..1000, one for all or one per stream.
    text: Text embeddings.
    place: Coordinates, see `place_of`.

  Returns:
    Velocity, and the chunk's entries for `cache.commit`.
  """

  def context_of(own, past):
    return jax.tree.map(
      lambda a, b: jnp.concatenate([a.astype(b.dtype)[:, None], b], axis=2),
      past,
      own,
    )

  velocity, entries = model(
    latents[:, None],
    jnp.broadcast_to(
      timestep.reshape(-1, 1, 1), (latents.shape[0], 1, latents.shape[1])
    ),
    text,
    place,
    context_of=context_of,
    history=cache.entries,
  )
  return velocity[:, 0], jax.tree.map(lambda e: e[:, :, 0], entries)


def _twice(x: Array, sampler: Sampler) -> Array:
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
  zero = jnp.zeros((), jnp.float32)
  _, entries = forward(model, cache, latents, zero, text, place)
  return cache_lib.commit(cache, entries, window=window)


def denoise(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  noise: Noise,
  text: Float[Array, "B M E"],
  *,
  sampler: Sampler,
  positions: Positions = "window",
  jump_to: int | None = None,
) -> Latents:
  """Denoises one chunk against the cache; the sampler's passes in a loop."""
  place = place_of(cache, noise.start.shape[1], positions=positions)
  if jump_to is not None:
    place = jump(place, noise.start.shape[1], to=jump_to)

  def step(x, levels):
    sigma, next_sigma, fresh = levels
    velocity, _ = forward(
      model,
      cache,
      _twice(x, sampler),
      sigma * flow.MAX_TIMESTEP,
      text,
      place,
    )
    if sampler.guidance is not None:
      velocity = flow.guide(*jnp.split(velocity, 2), sampler.guidance)
    if sampler.renoise:
      x0 = flow.x0_from_velocity(x, velocity, sigma)
      return flow.add_noise(x0, fresh, next_sigma), None
    return flow.euler_step(x, velocity, sigma, next_sigma), None

  sigmas = jnp.asarray((*sampler.sigmas, 0.0), jnp.float32)
  fresh = noise.fresh
  if sampler.renoise:  # The last call is followed by no noise.
    fresh = jnp.concatenate([fresh, jnp.zeros_like(noise.start)[None]])
  else:
    fresh = None
  x, _ = jax.lax.scan(step, noise.start, (sigmas[:-1], sigmas[1:], fresh))
  return x


def chunk_step(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  noise: Noise,
  text: Float[Array, "B M E"],
  *,
  window: cache_lib.Window,
  sampler: Sampler,
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
  clean = _twice(x0, sampler)
  return x0, commit(model, cache, clean, text, window=window, **where)


def empty_cache(
  model: wan.WanDiT,
  *,
  batch: int,
  frame: tuple[int, int, int],
  window: cache_lib.Window,
  max_frames: int,
  dtype: Any = None,
) -> cache_lib.Cache:
  """Allocates the cache of a rollout.

  Args:
    model: The network.
    batch: Streams; twice the examples with guidance.
    frame: H, W, C of one latent frame.
    window: Which frames to keep.
    max_frames: Latent frames of the rollout.
    dtype: Of the stored entries; the model's own by default.
  """
  config = model.config
  tokens = shapes.token_grid(*frame[:2], patch=config.patch).tokens
  block = jax.tree.map(lambda p: p[0], model.blocks)
  tokens_in = jax.ShapeDtypeStruct(
    (batch, window.chunk_frames, tokens, config.width),
    jnp.dtype(config.dtype),
  )
  entry = jax.eval_shape(
    lambda b, x: b.self_attention.project(x), block, tokens_in
  )
  stacked = jax.tree.map(
    lambda e: jax.ShapeDtypeStruct(
      (config.num_layers, *e.shape), dtype or e.dtype
    ),
    entry,
  )
  return cache_lib.empty(stacked, window=window, max_frames=max_frames)


@functools.partial(
  jax.jit,
  static_argnames=("window", "sampler", "chunks", "frame", "positions"),
  donate_argnames="state",
)
def scan_chunks(
  model: wan.WanDiT,
  state: Rollout,
  text: Float[Array, "B M E"],
  noise: Noise | None = None,
  *,
  window: cache_lib.Window,
  sampler: Sampler,
  chunks: int,
  frame: tuple[int, int, int],
  positions: Positions = "window",
) -> tuple[Float[Array, "G B T H W C"], Rollout]:
  """Generates `chunks` chunks in one program; the cache is updated in place.

  Args:
    model: The network.
    state: Window, keys and chunk counter; donated.
    text: Embeddings, first conditional then unconditional with guidance.
    noise: Given noise, leaves with a leading chunk axis; drawn from the keys
      if None.
    window: Which frames the cache keeps.
    sampler: How to denoise.
    chunks: Number of chunks.
    frame: H, W, C of a latent frame.
    positions: See `place_of`.

  Returns:
    Clean latents chunk by chunk, and the state after them.
  """
  shape = (window.chunk_frames, *frame)

  def step(state, given):
    if given is None:
      given = chunk_noise(state.keys, state.chunk, shape=shape, sampler=sampler)
    x0, cache = chunk_step(
      model,
      state.cache,
      given,
      text,
      window=window,
      sampler=sampler,
      positions=positions,
    )
    return Rollout(cache, state.keys, state.chunk + 1), x0

  state, latents = jax.lax.scan(step, state, noise, length=chunks)
  return latents, state


@functools.partial(
  jax.jit,
  static_argnames=("window", "positions"),
  donate_argnames="cache",
)
def _commit_jit(model, cache, latents, text, *, window, positions):
  return commit(model, cache, latents, text, window=window, positions=positions)


def prefill(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  latents: Latents,
  text: Float[Array, "B M E"],
  *,
  window: cache_lib.Window,
  positions: Positions = "window",
) -> cache_lib.Cache:
  """Commits given frames: an image (one frame) or a clip to continue.

  The first piece takes what does not fill a chunk, so one frame is a piece of
  its own, as when the model was trained with a given first frame.
  """
  given, chunk = latents.shape[1], window.chunk_frames
  ends = [*range(given % chunk or chunk, given + 1, chunk)] if given else []
  start = 0
  for end in ends:
    cache = _commit_jit(
      model,
      cache,
      latents[:, start:end],
      text,
      window=window,
      positions=positions,
    )
    start = end
  return cache


def start(
  model: wan.WanDiT,
  text: Float[Array, "B M E"],
  keys: Array,
  *,
  frame: tuple[int, int, int],
  window: cache_lib.Window,
  sampler: Sampler,
  max_frames: int,
  context: Latents | None = None,
  positions: Positions = "window",
  cache_dtype: Any = None,
) -> Rollout:
  """Checks the inputs, allocates the cache and commits given frames.

  Args:
    model: The network.
    text: Embeddings `[streams * B, M, E]`: with guidance the conditional ones
      first, then the unconditional ones.
    keys: One random key per example.
    frame: H, W, C of a latent frame.
    window: Which frames the cache keeps.
    sampler: How chunks will be denoised.
    max_frames: Latent frames of the whole video.
    context: Given first frames.
    positions: See `place_of`.
    cache_dtype: Of the stored entries; the model's own by default.

  Raises:
    ValueError: If shapes do not fit each other or the model.
  """
  batch = keys.shape[0]
  if text.shape[0] != batch * sampler.streams:
    raise ValueError(
      f"text has {text.shape[0]} rows for {batch} examples; give "
      f"{batch * sampler.streams}: conditional rows, and with guidance as "
      "many unconditional ones after them."
    )
  if max_frames < 1:
    raise ValueError(f"num_frames={max_frames} must be at least 1.")
  probe = jax.ShapeDtypeStruct((batch, 1, *frame), jnp.float32)
  check_latents(model, text, probe if context is None else context, batch=batch)
  if context is not None and context.shape[2:] != tuple(frame):
    raise ValueError(
      f"context frames have shape {context.shape[2:]} but the video has "
      f"{tuple(frame)}; resize the context."
    )
  cache = empty_cache(
    model,
    batch=batch * sampler.streams,
    frame=frame,
    window=window,
    max_frames=max_frames,
    dtype=cache_dtype,
  )
  if context is not None:
    cache = prefill(
      model,
      cache,
      _twice(context, sampler),
      text,
      window=window,
      positions=positions,
    )
  return Rollout(cache, keys, jnp.zeros((), jnp.int32))


def generate(
  model: wan.WanDiT,
  text: Float[Array, "B M E"],
  key: Array,
  *,
  frame: tuple[int, int, int],
  num_frames: int,
  window: cache_lib.Window,
  sampler: Sampler,
  context: Latents | None = None,
  cache_dtype: Any = None,
) -> Latents:
  """Generates whole videos in one jit.

  Args:
    model: The network.
    text: Embeddings, see `start`.
    key: One key, split into one per example, or one per example.
    frame: H, W, C of a latent frame.
    num_frames: Latent frames, given ones included; any number (whole chunks
      are generated and cropped).
    window: Which frames the cache keeps.
    sampler: How chunks are denoised.
    context: Given first frames: an image or a clip.
    cache_dtype: Of the stored entries; the model's own by default.

  Returns:
    Clean latents `[B, num_frames, H, W, C]`, given frames first.

  Raises:
    ValueError: If shapes do not fit each other or the model.
  """
  keys = split_keys(key, text.shape[0] // sampler.streams)
  given = 0 if context is None else context.shape[1]
  chunk = window.chunk_frames
  total = given + shapes.round_up(max(num_frames - given, 0), chunk)
  state = start(
    model,
    text,
    keys,
    frame=frame,
    window=window,
    sampler=sampler,
    max_frames=max(total, num_frames),
    context=context,
    cache_dtype=cache_dtype,
  )
  pieces = [] if context is None else [context]
  if total > given:
    latents, _ = scan_chunks(
      model,
      state,
      text,
      window=window,
      sampler=sampler,
      chunks=(total - given) // chunk,
      frame=frame,
    )
    moved = jnp.moveaxis(latents, 0, 1)
    pieces.append(moved.reshape(moved.shape[0], -1, *frame))
  return jnp.concatenate(pieces, axis=1)[:, :num_frames]


def split_keys(key: Array, batch: int) -> Array:
  """One key per example, from one key or as given."""
  if key.ndim:
    return key
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch))
