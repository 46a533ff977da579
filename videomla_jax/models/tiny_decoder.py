"""A small decoder of Wan's latents: TAEHV, docs/method.md, section 4.8.

It reads the latents as the network makes them, normalised, and has no norms, no
attention and no convolution over time: what a frame knows of the past is one
earlier frame at the input of each block. Layout is `[B, T, H, W, C]`; states
and groups are those of `models/vae.py`.
"""

import dataclasses
import itertools
from typing import Any

import einops
from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from videomla_jax.models import vae
from videomla_jax.models import vae_layers as layers
from videomla_jax.storage import plain_config

Video = Float[Array, "B T H W C"]

NUM_BLOCKS = 3  # of every resolution, in all published sizes
_MAX_DOUBLINGS = 8  # that of Wan2.1 has 3
_BOUND = 3.0  # of latents, which are close to Gaussian


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyDecoderConfig(plain_config.PlainConfig):
  """Describes a tiny decoder.

  Attributes:
    channels: Latent channels C.
    widths: Channels of each resolution, the lowest first, and of the last
      layer.
    temporal: Whether each resolution doubles the frames.
    spatial: Whether each resolution doubles rows and columns.
    patch: Pixels along each side of what one position of the last layer holds.
    dtype: Type of the convolutions.
  """

  title = "tiny decoder config"

  channels: int = 16
  widths: tuple[int, ...] = (256, 128, 64, 64)
  temporal: tuple[bool, ...] = (False, True, True)
  spatial: tuple[bool, ...] = (True, True, True)
  patch: int = 1
  dtype: str = "float32"

  def __post_init__(self) -> None:
    plain_config.check_range(
      self, channels=(1, 2**14), widths=(1, 2**14), patch=(1, 16)
    )
    plain_config.check_dtype(self, "dtype")
    if not 2 <= len(self.widths) <= _MAX_DOUBLINGS + 1:
      raise ValueError(
        f"tiny_decoder.widths={self.widths} must have 2 to "
        f"{_MAX_DOUBLINGS + 1} entries."
      )
    for name in ("temporal", "spatial"):
      if len(getattr(self, name)) != len(self.widths) - 1:
        raise ValueError(
          f"tiny_decoder.{name}={getattr(self, name)} must have one entry per "
          f"resolution, {len(self.widths) - 1}; give one for each."
        )

  @property
  def temporal_stride(self) -> int:
    """Number of pixel frames per latent frame after the first."""
    return 2 ** sum(self.temporal)

  @property
  def spatial_stride(self) -> int:
    """Number of pixels per latent pixel, along one side."""
    return 2 ** sum(self.spatial) * self.patch


def tiny(**changes: Any) -> TinyDecoderConfig:
  """Returns the same layers with few channels, to try the machinery.

  Args:
    **changes: Fields to replace.
  """
  return TinyDecoderConfig(
    **(dict(channels=4, widths=(16, 12, 8, 8)) | changes)
  )


class MemoryBlock(nnx.Module):
  """Three convolutions that see each frame beside the one before it.

  docs/method.md, Eq. (4.6).
  """

  def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
    self.dtype = dtype
    self.conv_in = layers.FrameConv(2 * width, width, dtype=dtype, rngs=rngs)
    self.conv_middle = layers.FrameConv(width, width, dtype=dtype, rngs=rngs)
    self.conv_out = layers.FrameConv(width, width, dtype=dtype, rngs=rngs)

  def start(self, batch: int, height: int, width: int) -> Array:
    """Returns a frame of zeros, which stands before the first frame."""
    channels = self.conv_out.kernel.shape[-1]
    return jnp.zeros((batch, 1, height, width, channels), self.dtype)

  def __call__(self, x: Video, memory: Array) -> tuple[layers.Out, Array]:
    """Returns the block's output and its last input frame as memory."""
    before = jnp.concatenate([memory, x[:, :-1]], axis=1)
    y = self.conv_in(jnp.concatenate([x, before], axis=-1))
    y = self.conv_out(jax.nn.relu(self.conv_middle(jax.nn.relu(y))))
    return jax.nn.relu(y + x), x[:, -1:]


class Resolution(nnx.Module):
  """Blocks of one resolution, and the way to the next one.

  docs/method.md, Eq. (4.7).
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    temporal: bool,
    spatial: bool,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ) -> None:
    """Draws the weights.

    Args:
      inputs: Channels of the blocks.
      outputs: Channels of the next resolution.
      temporal: Whether the number of frames doubles.
      spatial: Whether rows and columns double.
      dtype: Type of the products.
      rngs: Source of the weights.
    """
    self.temporal, self.spatial = temporal, spatial
    kwargs = dict(dtype=dtype, rngs=rngs)
    self.blocks = nnx.List(
      [MemoryBlock(inputs, **kwargs) for _ in range(NUM_BLOCKS)]
    )
    frames = 2 if temporal else 1
    self.grow = layers.Pointwise(inputs, frames * inputs, bias=False, **kwargs)
    self.conv = layers.FrameConv(inputs, outputs, bias=False, **kwargs)

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Returns the memory of every block before the first frame."""
    return tuple(b.start(batch, height, width) for b in self.blocks)

  def __call__(self, x: Video, memory: PyTree) -> tuple[layers.Out, PyTree]:
    """Returns frames of the next resolution, and the memory of the blocks."""
    after = []
    for block, past in zip(self.blocks, memory, strict=True):
      x, past = block(x, past)
      after.append(past)
    # In the published order pixels are repeated first. A product of every pixel
    # alone gives the same here, for a quarter of the operations.
    frames = 2 if self.temporal else 1
    x = einops.rearrange(
      self.grow(x), "B T H W (n C) -> B (T n) H W C", n=frames
    )
    x = self.conv.doubled(x) if self.spatial else self.conv(x)
    return x, tuple(after)


class TinyDecoder(nnx.Module):
  """Turns normalised latents into pixels; it cannot encode."""

  def __init__(self, config: TinyDecoderConfig, *, rngs: nnx.Rngs) -> None:
    self.config = config
    kwargs = dict(dtype=jnp.dtype(config.dtype), rngs=rngs)
    widths = config.widths
    self.conv_in = layers.FrameConv(config.channels, widths[0], **kwargs)
    self.resolutions = nnx.List(
      [
        Resolution(
          *pair,
          temporal=config.temporal[i],
          spatial=config.spatial[i],
          **kwargs,
        )
        for i, pair in enumerate(itertools.pairwise(widths))
      ]
    )
    self.conv_out = layers.FrameConv(widths[-1], 3 * config.patch**2, **kwargs)

  channels = property(lambda self: self.config.channels)
  pixel_channels = property(lambda self: 3)
  temporal_stride = property(lambda self: self.config.temporal_stride)
  spatial_stride = property(lambda self: self.config.spatial_stride)

  def start(self, batch: int, height: int, width: int) -> vae.State:
    """Returns the state before the first latent frame.

    Args:
      batch: Videos.
      height: Latent rows.
      width: Latent columns.
    """
    memory = []
    for resolution in self.resolutions:
      memory.append(resolution.start(batch, height, width))
      scale = 2 if resolution.spatial else 1
      height, width = scale * height, scale * width
    return vae.State(tuple(memory), True)

  def _group(
    self, x: Video, memory: PyTree, *, first: bool
  ) -> tuple[layers.Out, PyTree]:
    """Returns the pixels of one latent frame, and the memory after it."""
    after = []
    x = jax.nn.relu(self.conv_in(x))
    for resolution, past in zip(self.resolutions, memory, strict=True):
      x, past = resolution(x, past)
      after.append(past)
    if first:
      # A video begins with one pixel frame. Those before it are needed for the
      # memory alone.
      x = x[:, -1:]
    x = self.conv_out(jax.nn.relu(x))
    p = self.config.patch
    x = einops.rearrange(x, "B T H W (C p q) -> B T (H p) (W q) C", p=p, q=p)
    return x, tuple(after)

  def decode_unclipped(
    self, latents: Video, state: vae.State
  ) -> tuple[layers.Out, vae.State]:
    """Returns pixels in about [0, 1], float32, and the state after them."""
    x = jnp.tanh(latents.astype(jnp.float32) / _BOUND) * _BOUND
    group = vae.laid_out(self)._group
    out, state = vae.in_groups(group, x, state, group=1)
    return out.astype(jnp.float32), state

  def decode_chunk(
    self, latents: Video, state: vae.State
  ) -> tuple[Float[Array, "B t h w 3"], vae.State]:
    """Returns the next frames in [0, 1], and the state after them.

    The first latent frame of a video gives one pixel frame, all others four.

    Args:
      latents: Latents as the network makes them, normalised.
      state: From `start` or from the chunk before.
    """
    pixels, state = self.decode_unclipped(latents, state)
    return jnp.clip(pixels, 0, 1), state

  def decode(self, latents: Video) -> Float[Array, "B t h w 3"]:
    """Returns the pixels of a whole clip in [0, 1]."""
    state = self.start(latents.shape[0], *latents.shape[2:4])
    return self.decode_chunk(latents, state)[0]


def abstract(config: TinyDecoderConfig) -> TinyDecoder:
  """Returns the network with shapes in place of arrays."""
  return nnx.eval_shape(lambda: TinyDecoder(config, rngs=nnx.Rngs(0)))
