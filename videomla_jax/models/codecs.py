"""Codecs of small models: video pixels to latents without a VAE."""

import dataclasses

from einops import rearrange
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelCodec:
  """Space to depth: a square of pixels becomes the channels of a latent pixel.

  Attributes:
    block: Side of the square.
    pixel_channels: 1 (grey) or 3.
  """

  block: int = 4
  pixel_channels: int = 1

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
