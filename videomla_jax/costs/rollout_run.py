"""Time and compiled memory of a rollout, chunk by chunk."""

import time
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from videomla_jax import shapes
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.diffusion import stream
from videomla_jax.models import cache
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib


def compiled_bytes(
  model: wan.WanDiT,
  *,
  batch: int,
  frame: tuple[int, int, int],
  window: window_lib.Window,
  sampler: sampling.Sampler,
  num_frames: int,
) -> dict[str, int]:
  """Reads the memory of a rollout in one program from the compiler.

  Args:
    model: The network.
    batch: Videos side by side.
    frame: H, W, C of a latent frame.
    window: Which frames a chunk sees.
    sampler: How a chunk is denoised.
    num_frames: Latent frames of the video.

  Returns:
    Bytes of temporaries, of aliased (donated) state and of the latents that
    are handed back.
  """
  chunks = shapes.round_up(num_frames, window.chunk_frames)
  chunks //= window.chunk_frames
  rows = batch * sampler.rows_per_video
  # An abstract state compiles the same program and allocates no cache.
  state = jax.eval_shape(
    lambda keys: rollout.Rollout(
      rollout.empty_cache(
        model, batch=rows, frame=frame, window=window, max_frames=num_frames
      ),
      keys,
      jnp.zeros((), jnp.int32),
    ),
    jax.random.split(jax.random.key(0), batch),
  )
  text = jax.ShapeDtypeStruct(_text_shape(model, rows), jnp.float32)
  compiled = rollout.scan_chunks.lower(
    model,
    state,
    text,
    window=window,
    sampler=sampler,
    chunks=chunks,
    frame=frame,
  ).compile()
  analysis: Any = compiled.memory_analysis()  # untyped in JAX
  return dict(
    temporaries=analysis.temp_size_in_bytes,
    aliased=analysis.alias_size_in_bytes,
    latents=4 * batch * chunks * window.chunk_frames * int(np.prod(frame)),
  )


def chunk_seconds(
  model: wan.WanDiT,
  *,
  batch: int,
  frame: tuple[int, int, int],
  window: window_lib.Window,
  sampler: sampling.Sampler,
  num_frames: int,
) -> tuple[Float[np.ndarray, "chunks"], cache.Cache]:
  """Measures the wall time of every chunk of one streamed rollout.

  Args:
    model: The network.
    batch: Videos side by side.
    frame: H, W, C of a latent frame.
    window: Which frames a chunk sees.
    sampler: How a chunk is denoised.
    num_frames: Latent frames of the video.

  Returns:
    Seconds of each chunk, and the cache behind the last one.
  """
  text = jnp.zeros(
    (
      batch * sampler.rows_per_video,
      model.config.text_tokens,
      model.config.text_dim,
    )
  )
  chunks = stream.Stream(
    model,
    text,
    jax.random.key(0),
    frame=frame,
    window=window,
    sampler=sampler,
    max_frames=num_frames,
  )
  times, last = [], time.perf_counter()
  for latents in chunks:
    latents.block_until_ready()
    now = time.perf_counter()
    times.append(now - last)
    last = now
  return np.asarray(times), chunks.state.cache


def _text_shape(model: wan.WanDiT, rows: int) -> tuple[int, int, int]:
  return rows, model.config.text_tokens, model.config.text_dim


def time_ratio(seconds: Float[np.ndarray, "chunks"]) -> dict[str, float | int]:
  """Compares the median of the last fifth of chunks with that of the first.

  The first five chunks, which compile and fill the window, and the last one,
  behind which nothing runs, are left out.

  Args:
    seconds: Wall time of each chunk.
  """
  steady = seconds[5:-1]
  fifth = max(len(steady) // 5, 1)
  first, last = np.median(steady[:fifth]), np.median(steady[-fifth:])
  return dict(
    first_seconds=float(first),
    last_seconds=float(last),
    ratio=float(last / first),
    chunks=len(seconds),
  )
