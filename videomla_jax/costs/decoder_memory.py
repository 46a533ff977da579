"""Predicts the temporaries of a decoder's program from shapes.

They are what is alive at the widest layer, since XLA frees the rest. Which
arrays these are was read from programs compiled for an H100, which
`tests/aot/decoder_test.py` compares with the prediction.
"""

from collections.abc import Iterator
import math

import jax
import jax.numpy as jnp

from videomla_jax.models import tiny_decoder
from videomla_jax.models import vae
from videomla_jax.models import vae_layers as layers
from videomla_jax.models import vae_tiling
from videomla_jax.ops import convolution

_F32 = 4


def temporaries(
  decoder: vae.Decoder,
  *,
  videos: int,
  frame: tuple[int, int],
  latents: int,
  platform: str,
) -> int:
  """Returns the bytes that decoding a chunk needs beside its arguments.

  Args:
    decoder: The decoder, real or abstract; of others than released ones
      nothing is known, and 0 is returned.
    videos: Videos that are decoded side by side.
    frame: Latent rows and columns.
    latents: Latent frames of a chunk behind the first one.
    platform: "cpu", "gpu" or "tpu".
  """
  if isinstance(decoder, vae_tiling.TiledDecoder):
    # One tile at a time; the pixels of all wait to be blended.
    inside = temporaries(
      decoder.whole,
      videos=videos,
      frame=decoder.sides(*frame),
      latents=latents,
      platform=platform,
    )
    return inside + videos * 3 * _pixel_bytes(decoder, frame, latents)
  if isinstance(decoder, vae.WanVAE):
    form = decoder.config.convolution or convolution.form_for(platform)
    count = decoder.latents_at_once(latents, form=form)
    widest = max(_wan_layers(decoder, frame, count, form))
  elif isinstance(decoder, tiny_decoder.TinyDecoder):
    count = 1
    widest = max(_tiny_layers(decoder, frame))
  else:
    return 0
  item = jnp.dtype(decoder.config.dtype).itemsize
  if count == latents:
    return videos * widest * item
  # Around a loop, weights are laid out and the pixels of all frames wait.
  weights = sum(
    math.prod(x.shape) * item for x in jax.tree.leaves(_decoding(decoder))
  )
  pixels = latents * _pixel_bytes(decoder, frame, 1) // _F32 * item
  return videos * (widest * item + pixels) + weights


def _decoding(decoder: vae.WanVAE | tiny_decoder.TinyDecoder) -> object:
  return decoder.decoder if isinstance(decoder, vae.WanVAE) else decoder


def _pixel_bytes(
  decoder: vae.Decoder, frame: tuple[int, int], latents: int
) -> int:
  """Counts the bytes of one video's pixels in float32."""
  frames = latents * decoder.temporal_stride
  area = math.prod(frame) * decoder.spatial_stride**2
  return frames * area * decoder.pixel_channels * _F32


def _wan_layers(
  decoder: vae.WanVAE, frame: tuple[int, int], count: int, form: str
) -> Iterator[int]:
  """Yields the scalars that are alive in each layer of Wan's decoder.

  Args:
    decoder: The VAE.
    frame: Latent rows and columns.
    count: Latent frames that are computed side by side.
    form: Form of the convolutions over time.
  """
  area, frames = math.prod(frame), count
  for layer in (*decoder.decoder.middle.layers, *decoder.decoder.up.layers):
    if isinstance(layer, layers.Residual):
      for conv in (layer.conv_in, layer.conv_out):
        outputs = conv.kernel.shape[-1]
        # The residual, the frames with those of the past, and the output.
        new = frames * (max(layer.conv_in.inputs, outputs) + outputs)
        joined = (frames + 2) * conv.inputs
        if form == "sum":
          # Three windows, and what they are convolved to.
          joined += 3 * frames * (conv.inputs + outputs)
          new -= frames * outputs
        elif form == "channels":
          joined += 3 * frames * conv.inputs
        yield area * (new + joined)
    elif isinstance(layer, layers.FrameAttention):
      # Scores in float32, and the probabilities that they become.
      yield 2 * frames * area**2
    elif isinstance(layer, layers.Upsample):
      if layer.time_conv is not None:
        frames *= 2
      outputs = layer.frame_conv.kernel.shape[-1]
      yield area * frames * (layer.frame_conv.inputs + 8 * outputs)
      area *= 4


def _tiny_layers(
  decoder: tiny_decoder.TinyDecoder, frame: tuple[int, int]
) -> Iterator[int]:
  """Yields the scalars that are alive in each part of the tiny decoder."""
  area, frames = math.prod(frame), 1
  for resolution in decoder.resolutions:
    inputs, outputs = resolution.conv.kernel.shape[-2:]
    # A block's input, it beside the frame before, and an output.
    yield 4 * area * frames * inputs
    if resolution.temporal:
      frames *= 2
    if resolution.spatial:
      yield area * frames * (inputs + 8 * outputs)
      area *= 4
