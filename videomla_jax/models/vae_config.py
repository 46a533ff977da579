"""Sizes of the Wan VAE, its strides and the statistics of its latents."""

import dataclasses
from typing import Any

from videomla_jax.storage import plain_config

# Statistics of the released VAE's latents, one value per channel
# (docs/method.md, section 4.5).
_WAN_MEAN = (
  *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
  *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_WAN_STD = (
  *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
  *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeConfig(plain_config.PlainConfig):
  """Describes a VAE: its layers, and what its latents are.

  Attributes:
    width: Channels at full resolution.
    channels: Latent channels C.
    multipliers: Channels of each resolution, in units of `width`.
    num_blocks: Residual blocks per resolution; the decoder has one more.
    temporal: Whether each halving of the encoder also halves time.
    mean: Mean of the latents before they are normalised, per channel.
    std: Their standard deviation, per channel.
    dtype: Type of the convolutions; norms and attention scores are float32.
  """

  title = "VAE config"

  width: int
  channels: int
  multipliers: tuple[int, ...]
  num_blocks: int
  temporal: tuple[bool, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  dtype: str = "float32"

  def __post_init__(self) -> None:
    if len(self.temporal) != len(self.multipliers) - 1:
      raise ValueError(
        f"vae.temporal={self.temporal} must have one entry per halving, "
        f"{len(self.multipliers) - 1}; give one for each."
      )
    for name in ("mean", "std"):
      if len(getattr(self, name)) != self.channels:
        raise ValueError(
          f"vae.{name} has {len(getattr(self, name))} entries but "
          f"vae.channels={self.channels}; give one per channel."
        )

  @property
  def temporal_stride(self) -> int:
    """Number of pixel frames per latent frame after the first."""
    return 2 ** sum(self.temporal)

  @property
  def spatial_stride(self) -> int:
    """Number of pixels per latent pixel, along one side."""
    return 2 ** len(self.temporal)


def wan_vae(**changes: Any) -> VaeConfig:
  """Returns the released VAE of Wan2.1, which has 126,892,531 parameters.

  Args:
    **changes: Fields to replace.
  """
  values = dict(
    width=96,
    channels=16,
    multipliers=(1, 2, 4, 4),
    num_blocks=2,
    temporal=(False, True, True),
    mean=_WAN_MEAN,
    std=_WAN_STD,
  )
  return VaeConfig(**(values | changes))


def tiny_vae(**changes: Any) -> VaeConfig:
  """Returns the same layers with few channels, to try the machinery.

  Args:
    **changes: Fields to replace.
  """
  values = dict(
    width=8,
    channels=4,
    num_blocks=1,
    mean=(0.1, -0.2, 0.3, 0.0),
    std=(1.0, 0.9, 1.2, 1.1),
  )
  return wan_vae(**(values | changes))
