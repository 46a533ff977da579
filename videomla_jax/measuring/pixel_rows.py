"""Rows of the decoder, and of the whole way from text embeddings to pixels."""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import time

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from videomla_jax.generation import pipeline as pipeline_lib
from videomla_jax.generation import pixel_stream
from videomla_jax.measuring import random_networks
from videomla_jax.measuring import rollout_rows
from videomla_jax.measuring import row as row_lib
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.models import wan
from videomla_jax.models import wan_config

_CHUNKS = 4  # that are timed, behind one that compiles


def rows(
  *,
  make: Callable[..., wan_config.WanConfig],
  sizes: vae_coders.VaeConfig,
  frame: tuple[int, int, int],
) -> Iterator[row_lib.Row]:
  """Yields the rows.

  Args:
    make: Makes the sizes of the network from its `kind`.
    sizes: Sizes of the VAE.
    frame: H, W, C of a latent frame.
  """
  shape = f"{frame[0]}x{frame[1]} latents"
  yield row_lib.Row(
    name="vae_decode",
    measure=lambda: _decoder(sizes, frame),
    shape=f"3 frames of {shape}",
    implementation="wan",
    direction="forward",
  )
  yield row_lib.Row(
    name="text_to_pixels",
    measure=lambda: _whole(make(kind="latent"), sizes, frame),
    shape=shape,
    attention="latent",
    implementation="wan",
    direction="forward",
  )


def _codec(sizes: vae_coders.VaeConfig) -> vae.WanVAE:
  dtype = "bfloat16" if jax.default_backend() == "gpu" else "float32"
  sizes = dataclasses.replace(sizes, dtype=dtype)
  return random_networks.make(lambda: vae.WanVAE(sizes, rngs=nnx.Rngs(0)))


def _decoder(
  sizes: vae_coders.VaeConfig, frame: tuple[int, int, int]
) -> list[row_lib.Figure]:
  """Times a chunk behind the first frame, which has another program."""
  codec = _codec(sizes)
  latents = jax.random.normal(jax.random.key(1), (1, 3, *frame))
  state = codec.start(1, *frame[:2])
  decode = jax.jit(
    lambda codec, latents, state: codec.decode_chunk(latents, state),
    donate_argnums=2,
  )
  pixels, state = decode(codec, latents, state)
  program, figures = row_lib.compiled(decode, codec, latents, state)
  held = sum(x.nbytes for x in jax.tree.leaves(state))
  # Once to warm up: the state is donated, so calls are made one by one.
  pixels, state = program(codec, latents, state)
  jax.block_until_ready(pixels)
  started = time.perf_counter()
  for _ in range(_CHUNKS):
    pixels, state = program(codec, latents, state)
  jax.block_until_ready(pixels)
  took = (time.perf_counter() - started) / _CHUNKS
  return [
    row_lib.Figure("", took * 1e3, "ms"),
    *figures,
    row_lib.Figure("state", held / 1e6, "MB"),
    row_lib.Figure("finite", float(jnp.isfinite(pixels).all()), "1 is yes"),
  ]


def _whole(
  config: wan_config.WanConfig,
  sizes: vae_coders.VaeConfig,
  frame: tuple[int, int, int],
) -> list[row_lib.Figure]:
  """Streams twice: the second stream compiles nothing and is timed."""
  pipeline = pipeline_lib.Pipeline(
    dit=random_networks.make(
      lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)), halve=True
    ),
    codec=_codec(sizes),
    frame=frame,
    fps=16,
  )
  text = rollout_rows.text_of(config, 1)

  def stream() -> list[tuple[int, float]]:
    """Returns the frames of every chunk and when they are in host memory."""
    started, found = time.perf_counter(), []
    for pixels in pixel_stream.PixelStream(
      pipeline,
      text,
      jax.random.key(0),
      window=rollout_rows.WINDOW,
      sampler=rollout_rows.SAMPLER,
      num_frames=1 + 12 * (2 * _CHUNKS),
    ):
      count = np.asarray(pixels).shape[1]
      found.append((count, time.perf_counter() - started))
    return found

  first = stream()
  second = stream()
  # The first chunks see a window that is not full yet.
  half = len(second) // 2
  frames = sum(count for count, _ in second[half:])
  took = second[-1][1] - second[half - 1][1]
  chunk = 4 * rollout_rows.WINDOW.chunk_frames
  return [
    row_lib.Figure("", took / frames * chunk * 1e3, "ms"),
    row_lib.Figure("rate", frames / took, "frames/s"),
    row_lib.Figure("first_chunk", second[0][1], "s"),
    row_lib.Figure("first_chunk_compiling", first[0][1], "s"),
  ]
