"""What generation and training ask of a codec: pixels to latents and back.

A codec streams: `start` gives the state of a decoder before the first frame,
and `decode_chunk` turns the next latents into pixels. Released models have
`vae.WanVAE`, small ones `small_world.model.PixelCodec`.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, PyTree, UInt8


@runtime_checkable
class Codec(Protocol):
  """Turns pixels into latents and, chunk by chunk, latents into pixels.

  Attributes:
    temporal_stride: Pixel frames per latent frame after the first, which is
      one pixel frame.
    spatial_stride: Pixels per latent pixel, along one side.
    channels: Latent channels C.
    pixel_channels: 1 (grey) or 3.
  """

  @property
  def temporal_stride(self) -> int:
    """Number of pixel frames per latent frame after the first."""

  @property
  def spatial_stride(self) -> int:
    """Number of pixels per latent pixel, along one side."""

  @property
  def channels(self) -> int:
    """Number of latent channels C."""

  @property
  def pixel_channels(self) -> int:
    """Number of colours: 1 (grey) or 3."""

  def encode(self, video: UInt8[Array, "B t h w c"]) -> Array:
    """Returns the latents `[B, T, H, W, C]` of a whole clip."""

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Returns the state before the first latent frame.

    Args:
      batch: Videos.
      height: Latent rows.
      width: Latent columns.
    """

  def decode_chunk(
    self, latents: Float[Array, "B T H W C"], state: PyTree
  ) -> tuple[Array, PyTree]:
    """Returns the next frames, pixels in [0, 1], and the state after them."""
