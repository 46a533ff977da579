"""Chunk-autoregressive generation through the rolling cache.

spec/rollout.md. For every chunk: start from noise, denoise against the cache
in a few passes that only read it, then one pass over the clean chunk at t = 0
whose entries are committed. The cache has a fixed size, so minute ten costs
what second ten cost.

`generate` is one jit over all chunks; `stream` hands out chunk after chunk and
takes new prompts on the way.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videomla_jax import shapes
from videomla_jax import sharding
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib
from videomla_jax.ops import quantise

Latents = sampling.Latents


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
  model: wan.WanDiT,
  text: Array,
  latents: Float[Array, "..."] | jax.ShapeDtypeStruct,
  *,
  batch: int,
) -> None:
  """Refuses latents or text that the network cannot take, before compiling."""
  config = model.config
  grid = shapes.token_grid(*latents.shape[-3:-1], patch=config.patch)
  channels = latents.shape[-1]
  if channels != config.channels:
    raise ValueError(
      f"latents have {channels} channels but the model takes "
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


def empty_cache(
  model: wan.WanDiT,
  *,
  batch: int,
  frame: tuple[int, int, int],
  window: window_lib.Window,
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
    dtype: Of the stored entries; the model's own by default. int8 and
      float8_e4m3fn add a scale per token.
  """
  config = model.config
  tokens = shapes.token_grid(*frame[:2], patch=config.patch).tokens
  tokens_in = jax.ShapeDtypeStruct(
    (batch, window.chunk_frames, tokens, config.width),
    jnp.dtype(config.dtype),
  )

  def project(model, x):
    block = jax.tree.map(lambda p: p[0], model.blocks)
    return block.self_attention.project(x)

  entry = jax.eval_shape(project, model, tokens_in)
  stacked = jax.tree.map(
    lambda e: quantise.shape_of(
      jax.ShapeDtypeStruct((config.num_layers, *e.shape), e.dtype),
      dtype or e.dtype,
    ),
    entry,
  )
  cache = cache_lib.empty(stacked, window=window, max_frames=max_frames)
  split = lambda x: sharding.constrain(x, "cache")
  return cache._replace(entries=jax.tree.map(split, cache.entries))


@functools.partial(
  jax.jit,
  static_argnames=("window", "sampler", "chunks", "frame", "scheme"),
  donate_argnames="state",
)
def scan_chunks(
  model: wan.WanDiT,
  state: Rollout,
  text: Float[Array, "R M E"],
  noise: sampling.Noise | None = None,
  *,
  window: window_lib.Window,
  sampler: sampling.Sampler,
  chunks: int,
  frame: tuple[int, int, int],
  scheme: window_lib.Scheme = "window",
) -> tuple[Float[Array, "G b T H W C"], Rollout]:
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
    scheme: How frames are counted, see `Window.positions`.

  Returns:
    Clean latents chunk by chunk, and the state after them.
  """
  shape = (window.chunk_frames, *frame)

  def step(
    state: Rollout, noise: sampling.Noise | None
  ) -> tuple[Rollout, Latents]:
    if noise is None:
      noise = sampling.chunk_noise(
        state.keys, state.chunk, shape=shape, sampler=sampler
      )
    x0, cache = chunk_pass.chunk_step(
      model,
      state.cache,
      noise,
      text,
      window=window,
      sampler=sampler,
      scheme=scheme,
    )
    return Rollout(cache, state.keys, state.chunk + 1), x0

  state, latents = jax.lax.scan(step, state, noise, length=chunks)
  return latents, state


@functools.partial(
  jax.jit,
  static_argnames=("window", "scheme"),
  donate_argnames="cache",
)
def _commit(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  latents: Latents,
  text: Float[Array, "B M E"],
  *,
  window: window_lib.Window,
  scheme: window_lib.Scheme,
) -> cache_lib.Cache:
  """Compiles `chunk_pass.commit` and updates the cache in place."""
  return chunk_pass.commit(
    model, cache, latents, text, window=window, scheme=scheme
  )


def prefill(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  latents: Latents,
  text: Float[Array, "B M E"],
  *,
  window: window_lib.Window,
  scheme: window_lib.Scheme = "window",
) -> cache_lib.Cache:
  """Commits given frames: an image (one frame) or a clip to continue.

  The first piece takes what does not fill a chunk, so one frame is a piece of
  its own, as when the model was trained with a given first frame.
  """
  frames, chunk = latents.shape[1], window.chunk_frames
  ends = [*range(frames % chunk or chunk, frames + 1, chunk)] if frames else []
  start = 0
  for end in ends:
    cache = _commit(
      model,
      cache,
      latents[:, start:end],
      text,
      window=window,
      scheme=scheme,
    )
    start = end
  return cache


def start(
  model: wan.WanDiT,
  text: Float[Array, "R M E"],
  keys: Array,
  *,
  frame: tuple[int, int, int],
  window: window_lib.Window,
  sampler: sampling.Sampler,
  max_frames: int,
  context: Float[Array, "b K H W C"] | None = None,
  scheme: window_lib.Scheme = "window",
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
    scheme: How frames are counted, see `Window.positions`.
    cache_dtype: Of the stored entries; the model's own by default.

  Raises:
    ValueError: If shapes do not fit each other or the model.
  """
  batch = keys.shape[0]
  rows = batch * sampler.rows_per_video
  if text.shape[0] != rows:
    raise ValueError(
      f"text has {text.shape[0]} rows for {batch} examples; give {rows}: "
      "conditional rows, and with guidance as many unconditional ones after "
      "them."
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
    batch=rows,
    frame=frame,
    window=window,
    max_frames=max_frames,
    dtype=cache_dtype,
  )
  if context is not None:
    cache = prefill(
      model,
      cache,
      chunk_pass.repeat(context, sampler),
      text,
      window=window,
      scheme=scheme,
    )
  # The state is donated; the keys stay the caller's.
  return Rollout(cache, jnp.copy(keys), jnp.zeros((), jnp.int32))


def generate(
  model: wan.WanDiT,
  text: Float[Array, "R M E"],
  key: Array,
  *,
  frame: tuple[int, int, int],
  num_frames: int,
  window: window_lib.Window,
  sampler: sampling.Sampler,
  context: Float[Array, "b K H W C"] | None = None,
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
  if num_frames < 1:
    raise ValueError(f"num_frames={num_frames} must be at least 1.")
  keys = split_keys(key, text.shape[0] // sampler.rows_per_video)
  known = 0 if context is None else context.shape[1]
  chunk = window.chunk_frames
  total = known + shapes.round_up(max(num_frames - known, 0), chunk)
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
  if total > known:
    latents, _ = scan_chunks(
      model,
      state,
      text,
      window=window,
      sampler=sampler,
      chunks=(total - known) // chunk,
      frame=frame,
    )
    moved = jnp.moveaxis(latents, 0, 1)
    pieces.append(moved.reshape(moved.shape[0], -1, *frame))
  return jnp.concatenate(pieces, axis=1)[:, :num_frames]


def split_keys(key: Array, batch: int) -> Array:
  """One key per example, from one key or as given.

  Args:
    key: Typed key or keys; raw ones of `jax.random.PRNGKey` are wrapped.
    batch: Examples.
  """
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  if key.ndim:
    return key
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch))
