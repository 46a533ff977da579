"""Rows of decoders, and of the whole way from text embeddings to pixels."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
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
from videomla_jax.models import tiny_decoder
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.ops import convolution

_CHUNKS = 4  # that are timed, behind those that fill the window


# Makes a decoder with random weights, on the device.
Make = Callable[[], vae.Decoder]


def decoders(
  wan_sizes: vae_coders.VaeConfig, tiny_sizes: tiny_decoder.TinyDecoderConfig
) -> dict[str, Make]:
  """Returns what makes each decoder, by the name that `sample` has for it.

  Args:
    wan_sizes: Sizes of Wan's VAE.
    tiny_sizes: Sizes of the tiny decoder.
  """
  small = dataclasses.replace(tiny_sizes, dtype=_dtype())
  return {
    "wan": functools.partial(_wan, wan_sizes, ""),
    "tiny": lambda: random_networks.make(
      lambda: tiny_decoder.TinyDecoder(small, rngs=nnx.Rngs(0))
    ),
  }


def forms(wan_sizes: vae_coders.VaeConfig) -> dict[str, Make]:
  """Returns what makes Wan's VAE with convolutions that are not chosen here.

  Args:
    wan_sizes: Sizes of Wan's VAE.
  """
  chosen = convolution.form_for(jax.default_backend())
  return {
    f"wan_{form}": functools.partial(_wan, wan_sizes, form)
    for form in convolution.FORMS
    if form != chosen
  }


def _dtype() -> str:
  """Returns the number format; a CPU emulates bfloat16."""
  return "bfloat16" if jax.default_backend() == "gpu" else "float32"


def _wan(sizes: vae_coders.VaeConfig, form: str) -> vae.WanVAE:
  config = dataclasses.replace(sizes, dtype=_dtype(), convolution=form)
  return random_networks.make(lambda: vae.WanVAE(config, rngs=nnx.Rngs(0)))


def rows(
  *,
  make: Callable[..., wan_config.WanConfig],
  decoders: Mapping[str, Make],
  others: Mapping[str, Make],
  frame: tuple[int, int, int],
) -> Iterator[row_lib.Row]:
  """Yields the rows.

  Args:
    make: Makes the sizes of the network from its `kind`.
    decoders: What makes each decoder, by name.
    others: Likewise, of those that only decode a chunk.
    frame: H, W, C of a latent frame.
  """
  shape = f"{frame[0]}x{frame[1]} latents"
  frames = rollout_rows.WINDOW.chunk_frames
  for name, decoder in {**decoders, **others}.items():
    yield row_lib.Row(
      name="vae_decode",
      measure=functools.partial(_decode, decoder, (1, frames, *frame)),
      shape=f"{frames} frames of {shape}",
      implementation=name,
      direction="forward",
    )
  for name, decoder in decoders.items():
    yield row_lib.Row(
      name="text_to_pixels",
      measure=functools.partial(_whole, make(kind="latent"), decoder, frame),
      shape=shape,
      attention="latent",
      implementation=name,
      direction="forward",
    )


def _decode(
  make: Make, shape: tuple[int, int, int, int, int]
) -> list[row_lib.Figure]:
  """Times a chunk behind the first frame, which has another program.

  Args:
    make: Makes the decoder.
    shape: Shape of the latents, `[B, T, H, W, C]`.
  """
  decoder = make()
  latents = jax.random.normal(jax.random.key(1), shape)
  decode = jax.jit(
    lambda decoder, latents, state: decoder.decode_chunk(latents, state),
    donate_argnums=2,
    compiler_options=convolution.CHANNELS_LAST,
  )
  state = decoder.start(shape[0], *shape[2:4])
  pixels, state = decode(decoder, latents, state)
  program, figures = row_lib.compiled(decode, decoder, latents, state)
  held = sum(x.nbytes for x in jax.tree.leaves(state))
  took, (pixels, _) = row_lib.seconds_of_steps(
    lambda carry: program(decoder, latents, carry[1]), (pixels, state)
  )
  return [
    row_lib.Figure("", took * 1e3, "ms"),
    *figures,
    row_lib.Figure("state", held / 1e6, "MB"),
    row_lib.Figure("finite", float(jnp.isfinite(pixels).all()), "1 is yes"),
  ]


def _whole(
  config: wan_config.WanConfig, make: Make, frame: tuple[int, int, int]
) -> list[row_lib.Figure]:
  """Streams twice: the second stream compiles nothing and is timed."""
  pipeline = pipeline_lib.Pipeline(
    dit=random_networks.make(
      lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)), halve=True
    ),
    codec=make(),
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
