"""The two halves of the Wan VAE: each takes one group of frames at a time.

docs/method.md, section 4.2. A group is one latent frame; in pixels it
is one frame for the first and `temporal_stride` frames for the others. What a
coder must remember of the groups before is its memory, which it gets and
returns.
"""

import itertools

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from videomla_jax.models import vae_config
from videomla_jax.models import vae_layers as layers

Video = Float[Array, "B T H W C"]


class Encoder(nnx.Module):
  """Turns a group of pixel frames into the moments of one latent frame."""

  def __init__(self, config: vae_config.VaeConfig, *, rngs: nnx.Rngs):
    dtype = jnp.dtype(config.dtype)
    widths = [config.width * m for m in (1, *config.multipliers)]
    self.conv_in = layers.CausalConv(3, widths[0], dtype=dtype, rngs=rngs)
    # One flat list for all resolutions, as the released names count layers.
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

  def __init__(self, config: vae_config.VaeConfig, *, rngs: nnx.Rngs):
    dtype = jnp.dtype(config.dtype)
    multipliers = (config.multipliers[-1], *config.multipliers[::-1])
    widths = [config.width * m for m in multipliers]
    self.conv_in = layers.CausalConv(
      config.channels, widths[0], dtype=dtype, rngs=rngs
    )
    self.middle = _middle(widths[0], dtype=dtype, rngs=rngs)
    # One flat list for all resolutions, as the released names count layers.
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
