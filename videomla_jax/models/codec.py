"""Codecs: pixels to latents and back, the small models' one and the interface.

A codec streams: `start` gives the state of a decoder before the first frame,
`decode_chunk` turns the next latents into pixels. `WanVAE` is the other one.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

from einops import rearrange
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


@runtime_checkable
class Codec(Protocol):
  """What sampling asks of a codec.

  Attributes:
    temporal_stride: Pixel frames per latent frame after the first, which is
      one pixel frame.
    spatial_stride: Pixels per latent pixel, along one side.
    channels: Latent channels C.
    pixel_channels: 1 (grey) or 3.
  """

  @property
  def temporal_stride(self) -> int: ...  # noqa: D102

  @property
  def spatial_stride(self) -> int: ...  # noqa: D102

  @property
  def channels(self) -> int: ...  # noqa: D102

  @property
  def pixel_channels(self) -> int: ...  # noqa: D102

  def encode(self, video: UInt8[Array, "B t h w c"]) -> Array:
    """A whole clip to latents `[B, T, H, W, C]`."""

  def start(self, batch: int, height: int, width: int) -> Any:
    """State before the first latent frame, from latent sizes."""

  def decode_chunk(
    self, latents: Float[Array, "B T H W C"], state: Any
  ) -> tuple[Array, Any]:
    """The next frames, pixels in [0, 1], and the state after them."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelCodec:
  """Space to depth: a square of pixels becomes the channels of a latent pixel.

  Attributes:
    block: Side of the square.
    pixel_channels: 1 (grey) or 3.
  """

  block: int = 4
  pixel_channels: int = 1
  temporal_stride: int = 1

  @property
  def spatial_stride(self) -> int:
    """Pixels per latent pixel."""
    return self.block

  @property
  def channels(self) -> int:
    """Latent channels C."""
    return self.block**2 * self.pixel_channels

  def encode(
    self, video: UInt8[Array, "B T h w c"]
  ) -> Float[Array, "B T H W C"]:
    """Pixels 0..255 to latents in [-1, 1]."""
    pixels = video.astype(jnp.float32) / 127.5 - 1
    return rearrange(
      pixels,
      "B T (H p) (W q) c -> B T H W (p q c)",
      p=self.block,
      q=self.block,
    )

  def decode(
    self, latents: Float[Array, "B T H W C"]
  ) -> Float[Array, "B T h w c"]:
    """Latents to pixels in [0, 1], clipped."""
    pixels = rearrange(
      latents,
      "B T H W (p q c) -> B T (H p) (W q) c",
      p=self.block,
      q=self.block,
      c=self.pixel_channels,
    )
    return jnp.clip(0.5 * pixels + 0.5, 0, 1)

  def start(self, batch: int, height: int, width: int) -> tuple[()]:
    """No state: frames are independent."""
    del batch, height, width
    return ()

  def decode_chunk(
    self, latents: Float[Array, "B T H W C"], state: tuple[()]
  ) -> tuple[Float[Array, "B T h w c"], tuple[()]]:
    """As `decode`."""
    return self.decode(latents), state
