"""The two halves of the Wan VAE: each takes one group of frames at a time.

spec/wan.md part B. A group is one latent frame, and one pixel frame for the
first and `temporal_stride` for the others. What a coder must remember of the
groups before is its memory, which it gets and returns.
"""

import itertools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from videomla_jax.models import vae_config
from videomla_jax.models import vae_layers as layers

Video = Float[Array, "B T H W C"]


class Encoder(nnx.Module):
  """Pixels to moments of the latents, one group of frames at a time."""

  def __init__(self, config: vae_config.VaeConfig, *, rngs: nnx.Rngs):
    kwargs = dict(dtype=jnp.dtype(config.dtype), rngs=rngs)
    widths = [config.width * m for m in (1, *config.multipliers)]
    self.conv_in = layers.CausalConv(3, widths[0], **kwargs)
    down: list[Any] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
      for j in range(config.num_blocks):
        block_in = outputs if j else inputs
        down.append(layers.Residual(block_in, outputs, **kwargs))
      if i < len(config.temporal):
        down.append(
          layers.Downsample(outputs, temporal=config.temporal[i], **kwargs)
        )
    self.down = layers.Chain(down)
    self.middle = _middle(widths[-1], kwargs)
    self.norm_out = layers.Norm(widths[-1])
    self.conv_out = layers.CausalConv(widths[-1], 2 * config.channels, **kwargs)

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Memory before the first frame, from pixel sizes."""
    halvings = len([x for x in self.down.layers if _halves(x)])
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
    """Moments, mean channels first, of the next latent frame."""
    after = {}
    x, after["conv_in"] = self.conv_in(x, memory["conv_in"])
    x, after["down"] = self.down(x, memory["down"], first=first)
    x, after["middle"] = self.middle(x, memory["middle"], first=first)
    x = jax.nn.silu(self.norm_out(x))
    x, after["conv_out"] = self.conv_out(x, memory["conv_out"])
    return x, after


class Decoder(nnx.Module):
  """Latents to pixels, one latent frame at a time."""

  def __init__(self, config: vae_config.VaeConfig, *, rngs: nnx.Rngs):
    kwargs = dict(dtype=jnp.dtype(config.dtype), rngs=rngs)
    multipliers = (config.multipliers[-1], *config.multipliers[::-1])
    widths = [config.width * m for m in multipliers]
    self.conv_in = layers.CausalConv(config.channels, widths[0], **kwargs)
    self.middle = _middle(widths[0], kwargs)
    up: list[Any] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
      inputs = inputs // 2 if i else inputs  # an upsampler halves channels
      for j in range(config.num_blocks + 1):
        block_in = outputs if j else inputs
        up.append(layers.Residual(block_in, outputs, **kwargs))
      if i < len(config.temporal):
        temporal = config.temporal[::-1][i]
        up.append(layers.Upsample(outputs, temporal=temporal, **kwargs))
    self.up = layers.Chain(up)
    self.norm_out = layers.Norm(widths[-1])
    self.conv_out = layers.CausalConv(widths[-1], 3, **kwargs)

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Memory before the first frame, from latent sizes."""
    doublings = len([x for x in self.up.layers if _doubles(x)])
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
    """Pixels in about [-1, 1] of the next latent frame, not clipped."""
    after = {}
    x, after["conv_in"] = self.conv_in(x, memory["conv_in"])
    x, after["middle"] = self.middle(x, memory["middle"], first=first)
    x, after["up"] = self.up(x, memory["up"], first=first)
    x = jax.nn.silu(self.norm_out(x))
    x, after["conv_out"] = self.conv_out(x, memory["conv_out"])
    return x, after


def _middle(width: int, kwargs: dict[str, Any]) -> layers.Chain:
  return layers.Chain(
    [
      layers.Residual(width, width, **kwargs),
      layers.FrameAttention(width, **kwargs),
      layers.Residual(width, width, **kwargs),
    ]
  )


def _halves(layer: Any) -> bool:
  return isinstance(layer, layers.Downsample)


def _doubles(layer: Any) -> bool:
  return isinstance(layer, layers.Upsample)
