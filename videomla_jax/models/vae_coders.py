"""Sizes of the Wan VAE and its two halves, which take frames group by group.

docs/method.md, section 4.2. A group is one latent frame. In pixels it is one
frame for the first group and `temporal_stride` frames for the others. What a
coder must remember of the groups before is its memory, which it gets and
returns.
"""

import dataclasses
import itertools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from videomla_jax.models import vae_layers as layers
from videomla_jax.ops import convolution
from videomla_jax.storage import plain_config

Video = Float[Array, "B T H W C"]


_MAX_RESOLUTIONS = 8  # that of Wan2.1 has 4


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
    convolution: How convolutions over time are computed, a key of
      `convolution.FORMS`; by default the platform decides.
    spare_memory: Whether the decoder takes one latent frame at a time where it
      would be faster to take several.
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
  convolution: str = ""
  spare_memory: bool = False

  def __post_init__(self) -> None:
    plain_config.check_range(
      self,
      width=(1, 2**14),
      channels=(1, 2**14),
      multipliers=(1, 64),
      num_blocks=(1, 64),
      mean=(-1e6, 1e6),
      std=(1e-6, 1e6),
    )
    plain_config.check_dtype(self, "dtype")
    if not 0 < len(self.multipliers) <= _MAX_RESOLUTIONS:
      raise ValueError(
        f"vae.multipliers={self.multipliers} must have 1 to {_MAX_RESOLUTIONS} "
        "entries."
      )
    if self.convolution not in ("", *convolution.FORMS):
      raise ValueError(
        f"vae.convolution={self.convolution!r} is unknown; use one of "
        f"{sorted(convolution.FORMS)}, or leave it empty."
      )
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


class Encoder(nnx.Module):
  """Turns a group of pixel frames into the moments of one latent frame."""

  def __init__(self, config: VaeConfig, *, rngs: nnx.Rngs) -> None:
    dtype = jnp.dtype(config.dtype)
    widths = [config.width * m for m in (1, *config.multipliers)]
    self.conv_in = layers.CausalConv(3, widths[0], dtype=dtype, rngs=rngs)
    # Resolutions share one flat list, as the released names count layers.
    down: list[layers.Layer] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
      for j in range(config.num_blocks):
        block_in = outputs if j else inputs
        down.append(layers.Residual(block_in, outputs, dtype=dtype, rngs=rngs))
      if i < len(config.temporal):
        down.append(
          layers.Downsample(
            outputs, temporal=config.temporal[i], dtype=dtype, rngs=rngs
          )
        )
    self.down = layers.Chain(down)
    self.middle = _middle(widths[-1], dtype=dtype, rngs=rngs)
    self.norm_out = layers.Norm(widths[-1])
    self.conv_out = layers.CausalConv(
      widths[-1], 2 * config.channels, dtype=dtype, rngs=rngs
    )

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Returns the memory before the first frame.

    Args:
      batch: Videos B.
      height: Pixel rows.
      width: Pixel columns.
    """
    halvings = _count(self.down, layers.Downsample)
    small = (batch, height >> halvings, width >> halvings)
    return dict(
      conv_in=self.conv_in.start(batch, height, width),
      down=self.down.start(batch, height, width),
      middle=self.middle.start(*small),
      conv_out=self.conv_out.start(*small),
    )

  def __call__(
    self, x: Video, memory: PyTree, *, first: bool
  ) -> tuple[layers.Out, PyTree]:
    """Returns the moments of the next latent frame, and the memory after it.

    Args:
      x: Pixels of one group in [-1, 1].
      memory: From `start` or from the call before.
      first: Whether this is the group of the first frame.

    Returns:
      Means in the first C channels and log variances in the others, both
      before the last projection; and the memory.
    """
    after = {}
    x, after["conv_in"] = self.conv_in(x, memory["conv_in"])
    x, after["down"] = self.down(x, memory["down"], first=first)
    x, after["middle"] = self.middle(x, memory["middle"], first=first)
    x = jax.nn.silu(self.norm_out(x))
    x, after["conv_out"] = self.conv_out(x, memory["conv_out"])
    return x, after


class Decoder(nnx.Module):
  """Turns one latent frame into a group of pixel frames."""

  def __init__(self, config: VaeConfig, *, rngs: nnx.Rngs) -> None:
    dtype = jnp.dtype(config.dtype)
    multipliers = (config.multipliers[-1], *config.multipliers[::-1])
    widths = [config.width * m for m in multipliers]
    self.conv_in = layers.CausalConv(
      config.channels, widths[0], dtype=dtype, rngs=rngs
    )
    self.middle = _middle(widths[0], dtype=dtype, rngs=rngs)
    # Resolutions share one flat list, as the released names count layers.
    up: list[layers.Layer] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
      # An upsampler halves the channels, so the block behind it has half.
      inputs = inputs // 2 if i else inputs
      for j in range(config.num_blocks + 1):
        block_in = outputs if j else inputs
        up.append(layers.Residual(block_in, outputs, dtype=dtype, rngs=rngs))
      if i < len(config.temporal):
        temporal = config.temporal[::-1][i]
        up.append(
          layers.Upsample(outputs, temporal=temporal, dtype=dtype, rngs=rngs)
        )
    self.up = layers.Chain(up)
    self.norm_out = layers.Norm(widths[-1])
    self.conv_out = layers.CausalConv(widths[-1], 3, dtype=dtype, rngs=rngs)

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Returns the memory before the first frame.

    Args:
      batch: Videos B.
      height: Latent rows.
      width: Latent columns.
    """
    doublings = _count(self.up, layers.Upsample)
    large = (batch, height << doublings, width << doublings)
    return dict(
      conv_in=self.conv_in.start(batch, height, width),
      middle=self.middle.start(batch, height, width),
      up=self.up.start(batch, height, width),
      conv_out=self.conv_out.start(*large),
    )

  def __call__(
    self, x: Video, memory: PyTree, *, first: bool
  ) -> tuple[layers.Out, PyTree]:
    """Returns the pixels of the next group, and the memory after it.

    Args:
      x: One latent frame, projected.
      memory: From `start` or from the call before.
      first: Whether this is the first latent frame.

    Returns:
      Pixels in about [-1, 1], not clipped; and the memory.
    """
    after = {}
    x, after["conv_in"] = self.conv_in(x, memory["conv_in"])
    x, after["middle"] = self.middle(x, memory["middle"], first=first)
    x, after["up"] = self.up(x, memory["up"], first=first)
    x = jax.nn.silu(self.norm_out(x))
    x, after["conv_out"] = self.conv_out(x, memory["conv_out"])
    return x, after


def _middle(width: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> layers.Chain:
  """Returns the layers at the lowest resolution, attention among them."""
  return layers.Chain(
    [
      layers.Residual(width, width, dtype=dtype, rngs=rngs),
      layers.FrameAttention(width, dtype=dtype, rngs=rngs),
      layers.Residual(width, width, dtype=dtype, rngs=rngs),
    ]
  )


def _count(chain: layers.Chain, kind: type[nnx.Module]) -> int:
  """Returns how many layers of a chain are of a kind."""
  return sum(isinstance(layer, kind) for layer in chain.layers)


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
