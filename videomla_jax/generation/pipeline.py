"""From text embeddings to pixels: the pipeline around the DiT.

Text encoder, DiT and codec are used one after the other, so that the memory of
the encoder is free before the DiT is loaded:

  source = sources.open_source(...)      checks files, loads nothing big
  text = source.embed(prompts, ...)      the text encoder comes and goes
  pipeline = source.load()               DiT and codec
  for pixels in PixelStream(pipeline, text, key, ...)
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt8
import numpy as np

from videomla_jax import shapes
from videomla_jax.generation import pixels as pixels_lib
from videomla_jax.models import vae
from videomla_jax.models import wan
from videomla_jax.ops import convolution

# Bytes 0..255, or numbers in [0, 1] where a judge looks at them.
Pixels = UInt8[Array, "B t h w c"] | Float[Array, "B t h w c"]
Text = Float[Array, "R M E"]
Latents = Float[Array, "B T H W C"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
  """A network together with what turns its latents into pixels.

  Attributes:
    dit: The network.
    codec: Turns latents into pixels, and given pixels into latents unless
      `load_encoder` does.
    frame: H, W, C of a latent frame.
    fps: Pixel frames per second.
    load_encoder: Loads what turns given pixels into latents, which is freed
      after use; None where the codec does it.
  """

  dit: wan.WanDiT
  codec: vae.Decoder
  frame: tuple[int, int, int]
  fps: float | int
  load_encoder: Callable[[], vae.Codec] | None = None

  def latents_for(self, pixel_frames: int) -> int:
    """Counts the latent frames that decode to at least so many pixel frames."""
    stride = self.codec.temporal_stride
    return shapes.covering_latents(pixel_frames, stride=stride)


# The old state is donated: it would otherwise be held twice, and the memory of
# Wan's decoder is 3.6 GB at 480 x 832 in float32.
@functools.partial(
  jax.jit,
  static_argnames="as_bytes",
  donate_argnames="state",
  compiler_options=convolution.CHANNELS_LAST,
)
def _decode(
  codec: vae.Decoder, latents: Latents, state: PyTree, *, as_bytes: bool
) -> tuple[Pixels, PyTree]:
  pixels, state = codec.decode_chunk(latents, state)
  # Bytes are a quarter of what would be written and copied to the host: 14 MB
  # instead of 57 MB for twelve frames of 480 x 832.
  return pixels_lib.to_uint8(pixels) if as_bytes else pixels, state


@functools.partial(jax.jit, compiler_options=convolution.CHANNELS_LAST)
def _encode(codec: vae.Codec, video: UInt8[Array, "B t h w c"]) -> Latents:
  return codec.encode(video)


def encode(
  pipeline: Pipeline, video: UInt8[np.ndarray, "B t h w c"]
) -> Latents:
  """Turns whole clips into latents.

  Args:
    pipeline: Gives the codec.
    video: Clips of a length that `usable_clip` gives, 0..255.
  """
  load = pipeline.load_encoder
  codec = pipeline.codec if load is None else load()
  assert isinstance(codec, vae.Codec)
  return _encode(codec, jnp.asarray(video))


class Decoder:
  """Decodes chunk after chunk; carries what the codec remembers of the past."""

  def __init__(
    self, pipeline: Pipeline, *, batch: int, as_bytes: bool = True
  ) -> None:
    """Starts before the first frame.

    Args:
      pipeline: Gives the codec and the size of a frame.
      batch: Videos that are decoded side by side.
      as_bytes: Whether pixels are bytes 0..255; else they are in [0, 1].
    """
    self._codec, self._as_bytes = pipeline.codec, as_bytes
    self._state = pipeline.codec.start(batch, *pipeline.frame[:2])

  def __call__(self, latents: Latents) -> Pixels:
    """Starts decoding the next frames, and does not wait for it."""
    pixels, self._state = _decode(
      self._codec, latents, self._state, as_bytes=self._as_bytes
    )
    return pixels


def usable_clip(
  given: UInt8[np.ndarray, "T h w c"], pipeline: Pipeline, *, most: int
) -> UInt8[np.ndarray, "t h w c"]:
  """Cuts a given clip to frames that the codec can encode.

  A codec takes one frame, then `temporal_stride` frames at a time. Frames are
  dropped at the start of the clip, so that the video continues its end.

  Args:
    given: First frames of a video.
    pipeline: Gives the codec.
    most: Most frames that are used, at least 1.
  """
  given = given[-most:]
  # What is dropped is what one frame and whole strides leave over.
  return given[(len(given) - 1) % pipeline.codec.temporal_stride :]
