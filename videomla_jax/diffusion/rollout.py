"""Chunk-autoregressive generation through the rolling cache.

docs/method.md, section 9. Every chunk starts from noise and is denoised against
the cache in a few passes that only read it; one more pass over the clean chunk
at t = 0 makes the entries that are committed. The cache has a fixed size, so
minute ten costs what second ten cost.

`generate` runs all chunks in one jit; `stream.Stream` hands out chunk after
chunk and takes new prompts on the way.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32, Key, PyTree, Shaped

from videomla_jax import shapes
from videomla_jax import sharding
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import rollout_inputs
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib
from videomla_jax.ops import device
from videomla_jax.ops import quantise

Latents = sampling.Latents


class Rollout(NamedTuple):
  """State between two chunks; a pytree that can be saved and resumed.

  Attributes:
    cache: Entries of the window; two rows per video with guidance.
    keys: Random key of every video, which never changes.
    chunk: Number of chunks generated so far.
  """

  cache: cache_lib.Cache
  keys: Key[Array, "b"]
  chunk: Int32[Array, ""]


def empty_cache(
  model: wan.WanDiT,
  *,
  batch: int,
  frame: tuple[int, int, int],
  window: window_lib.Window,
  max_frames: int,
  dtype: DTypeLike | None = None,
) -> cache_lib.Cache:
  """Allocates an empty cache for a rollout.

  Args:
    model: The network.
    batch: Rows; two per video with guidance.
    frame: H, W, C of one latent frame.
    window: Which frames to keep.
    max_frames: Latent frames of the rollout.
    dtype: Dtype of the stored entries; the model's own by default. int8 and
      float8_e4m3fn add a scale per token.

  Raises:
    ValueError: If the window cannot work with this dtype.
  """
  config = model.config
  window.check_dtype(dtype or config.dtype)
  tokens = shapes.token_grid(*frame[:2], patch=config.patch).tokens
  tokens_in = jax.ShapeDtypeStruct(
    (batch, window.chunk_frames, tokens, config.width),
    jnp.dtype(config.dtype),
  )

  def project(model: wan.WanDiT, x: Array) -> PyTree:
    return model.block(0).self_attention.project(x)

  # Only the layer itself knows what it stores, so it is asked for the shapes.
  entry = jax.eval_shape(project, model, tokens_in)
  stacked = jax.tree.map(
    lambda e: quantise.shape_of(
      jax.ShapeDtypeStruct((config.num_layers, *e.shape), e.dtype),
      dtype or e.dtype,
    ),
    entry,
  )
  cache = cache_lib.empty(stacked, window=window, max_frames=max_frames)
  entries = jax.tree.map(
    lambda x: sharding.constrain(x, "cache"), cache.entries
  )
  return cache._replace(entries=entries)


@functools.partial(
  jax.jit,
  static_argnames=("window", "sampler", "chunks", "frame", "scheme"),
  donate_argnames="state",
  compiler_options=device.PRODUCTS_BY_CUBLAS,
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
  """Generates chunks in one program, which updates the cache in place.

  It has options for XLA, which JAX takes for whole programs only: a program of
  your own calls `chunk_pass.chunk_step`.

  Args:
    model: The network.
    state: Cache, keys and chunk counter; donated.
    text: Text embeddings, with guidance the unconditional rows after the
      conditional ones.
    noise: Noise to use, leaves with a leading chunk axis; None draws it from
      the keys.
    window: Which frames the cache keeps.
    sampler: How to denoise.
    chunks: Number of chunks to generate.
    frame: H, W, C of a latent frame.
    scheme: How frames are counted, see `Window.positions`.

  Returns:
    Clean latents chunk by chunk, and the state after them.
  """
  # Noise is drawn inside the loop: that of a minute is never in memory at once.
  # Window and sampler are static, so that shapes, the number of calls and the
  # rule are known while the program is traced.
  shape = (window.chunk_frames, *frame)
  keys = chunk_pass.with_keys_of_text(model, text)

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
      keys,
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
  compiler_options=device.PRODUCTS_BY_CUBLAS,
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

  Args:
    model: The network.
    cache: An empty cache, which is donated.
    latents: Clean latents of the given frames.
    text: Text embeddings.
    window: Which frames the cache keeps.
    scheme: How frames are counted, see `Window.positions`.

  Returns:
    The cache after the given frames.
  """
  # Pieces have at most two lengths, hence at most two programs are compiled.
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
  keys: Key[Array, "videos"],
  *,
  frame: tuple[int, int, int],
  window: window_lib.Window,
  sampler: sampling.Sampler,
  max_frames: int,
  context: Float[Array, "b K H W C"] | None = None,
  scheme: window_lib.Scheme = "window",
  cache_dtype: DTypeLike | None = None,
) -> Rollout:
  """Checks the inputs and returns the state after the given frames.

  Args:
    model: The network.
    text: Text embeddings; with guidance the unconditional rows come last.
    keys: One random key per video.
    frame: H, W, C of a latent frame.
    window: Which frames the cache keeps.
    sampler: How chunks will be denoised.
    max_frames: Latent frames of the whole video.
    context: First frames that are given, clean latents.
    scheme: How frames are counted, see `Window.positions`.
    cache_dtype: Dtype of the stored entries; the model's own by default.

  Raises:
    ValueError: If shapes do not fit each other or the model.
  """
  rollout_inputs.check(
    model,
    text,
    context,
    frame=frame,
    sampler=sampler,
    videos=keys.shape[0],
    num_frames=max_frames,
  )
  cache = empty_cache(
    model,
    batch=text.shape[0],
    frame=frame,
    window=window,
    max_frames=max_frames,
    dtype=cache_dtype,
  )
  # With guidance both kinds of rows see the given frames.
  if context is not None:
    cache = prefill(
      model,
      cache,
      chunk_pass.repeat(context, sampler),
      text,
      window=window,
      scheme=scheme,
    )
  # Every step donates its state, so the keys are copied: the caller's stay.
  return Rollout(cache, jnp.copy(keys), jnp.zeros((), jnp.int32))


def generate(
  model: wan.WanDiT,
  text: Float[Array, "R M E"],
  key: Shaped[Array, "..."],
  *,
  frame: tuple[int, int, int],
  num_frames: int,
  window: window_lib.Window,
  sampler: sampling.Sampler,
  context: Float[Array, "b K H W C"] | None = None,
  cache_dtype: DTypeLike | None = None,
) -> Latents:
  """Generates whole videos in one jit.

  Args:
    model: The network.
    text: Text embeddings, see `start`.
    key: One random key for all videos, or one per video.
    frame: H, W, C of a latent frame.
    num_frames: Latent frames, given ones included; any number.
    window: Which frames the cache keeps.
    sampler: How chunks are denoised.
    context: First frames that are given, an image or a clip, as clean latents.
    cache_dtype: Dtype of the stored entries; the model's own by default.

  Returns:
    Clean latents `[B, num_frames, H, W, C]`, given frames first.

  Raises:
    ValueError: If shapes do not fit each other or the model.
  """
  rollout_inputs.check_length(num_frames)
  keys = sampling.split_keys(key, text.shape[0] // sampler.rows_per_video)
  known = 0 if context is None else context.shape[1]
  num_chunks = -(-max(num_frames - known, 0) // window.chunk_frames)
  state = start(
    model,
    text,
    keys,
    frame=frame,
    window=window,
    sampler=sampler,
    max_frames=known + num_chunks * window.chunk_frames,
    context=context,
    cache_dtype=cache_dtype,
  )
  # Whole chunks are generated; what is too much is cropped at the end.
  clips = [] if context is None else [context]
  if num_chunks:
    chunks, _ = scan_chunks(
      model,
      state,
      text,
      window=window,
      sampler=sampler,
      chunks=num_chunks,
      frame=frame,
    )
    clips.append(sampling.joined(chunks))
  return jnp.concatenate(clips, axis=1)[:, :num_frames]
