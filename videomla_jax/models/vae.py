"""The Wan VAE: pixels to latents and back, streaming in both directions.

spec/wan.md part B. Strides are 4 x 8 x 8 after a first frame that stands alone:
4 (T - 1) + 1 pixel frames are T latent frames. Both directions work on one
group of frames at a time (one latent frame, one or four pixel frames) and carry
an explicit memory, so video of any length needs the memory of one group, and
cutting it into chunks changes nothing, not even a bit.
"""

import dataclasses
import itertools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt8

from videomla_jax.models import vae_layers as layers
from videomla_jax.storage import plain_config

# Of the released VAE, per latent channel (spec/wan.md B4).
_WAN_MEAN = (
  *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
  *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_WAN_STD = (
  *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
  *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)

Video = Float[Array, "B T H W C"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeConfig(plain_config.PlainConfig):
  """Sizes of a VAE.

  Attributes:
    width: Channels at full resolution.
    channels: Latent channels C.
    multipliers: Channels of each resolution, in units of `width`.
    num_blocks: Residual blocks per resolution; the decoder has one more.
    temporal: Whether each halving of the encoder also halves time.
    mean: Of the latents, per channel.
    std: Of the latents, per channel.
    dtype: Of the convolutions; norms and attention scores are float32.
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

  def __post_init__(self):
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
    """Pixel frames per latent frame after the first."""
    return 2 ** sum(self.temporal)

  @property
  def spatial_stride(self) -> int:
    """Pixels per latent pixel, along one side."""
    return 2 ** len(self.temporal)


def wan_vae(**kwargs) -> VaeConfig:
  """The released VAE of Wan2.1: 126,892,531 parameters."""
  values = dict(
    width=96,
    channels=16,
    multipliers=(1, 2, 4, 4),
    num_blocks=2,
    temporal=(False, True, True),
    mean=_WAN_MEAN,
    std=_WAN_STD,
  )
  return VaeConfig(**(values | kwargs))


def tiny_vae(**kwargs) -> VaeConfig:
  """The same layers with few channels, to try the machinery."""
  values = dict(
    width=8,
    channels=4,
    num_blocks=1,
    mean=(0.1, -0.2, 0.3, 0.0),
    std=(1.0, 0.9, 1.2, 1.1),
  )
  return wan_vae(**(values | kwargs))


class Encoder(nnx.Module):
  """Pixels to moments of the latents, one group of frames at a time."""

  def __init__(self, config: VaeConfig, *, rngs: nnx.Rngs):
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

  def __init__(self, config: VaeConfig, *, rngs: nnx.Rngs):
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


@dataclasses.dataclass(frozen=True)
class State:
  """What a coder remembers between chunks.

  Attributes:
    memory: Of every layer; zeros before the first frame.
    first: Whether the first frame is still to come. It is part of the tree's
      structure, so a program is compiled for the first chunk and one for the
      others.
  """

  memory: PyTree
  first: bool


jax.tree_util.register_dataclass(State, ["memory"], ["first"])


def _in_groups(coder, x: Video, state: State, *, group: int):
  """Runs a coder over a chunk group by group; memory is that of one group."""
  pieces, memory = [], state.memory
  if state.first:
    head, memory = coder(x[:, :1], memory, first=True)
    pieces, x = [head], x[:, 1:]
  if x.shape[1]:
    count = x.shape[1] // group
    groups = x.reshape(x.shape[0], count, group, *x.shape[2:])

    def step(memory, frames):
      out, memory = coder(frames, memory, first=False)
      return memory, out

    memory, outs = jax.lax.scan(step, memory, jnp.moveaxis(groups, 1, 0))
    outs = jnp.moveaxis(outs, 0, 1)
    pieces.append(outs.reshape(outs.shape[0], -1, *outs.shape[3:]))
  return jnp.concatenate(pieces, axis=1), State(memory, False)


class WanVAE(nnx.Module):
  """Encoder and decoder with the statistics of their latents."""

  def __init__(self, config: VaeConfig, *, rngs: nnx.Rngs):
    self.config = config
    dtype, channels = jnp.dtype(config.dtype), config.channels
    self.encoder = Encoder(config, rngs=rngs)
    self.quant = layers.Pointwise(
      2 * channels, 2 * channels, dtype=dtype, rngs=rngs
    )
    self.decoder = Decoder(config, rngs=rngs)
    self.post_quant = layers.Pointwise(
      channels, channels, dtype=dtype, rngs=rngs
    )

  @property
  def channels(self) -> int:
    """Latent channels C."""
    return self.config.channels

  @property
  def pixel_channels(self) -> int:
    """RGB."""
    return 3

  @property
  def temporal_stride(self) -> int:
    """Pixel frames per latent frame after the first."""
    return self.config.temporal_stride

  @property
  def spatial_stride(self) -> int:
    """Pixels per latent pixel, along one side."""
    return self.config.spatial_stride

  def start_encode(self, batch: int, height: int, width: int) -> State:
    """State before the first pixel frame.

    Args:
      batch: Videos.
      height: Pixel rows, a multiple of the stride.
      width: Pixel columns.

    Raises:
      ValueError: If the frame is not a multiple of the stride.
    """
    for name, size in (("height", height), ("width", width)):
      if size < 1 or size % self.spatial_stride:
        raise ValueError(
          f"{name}={size} must be a positive multiple of "
          f"{self.spatial_stride}; crop or resize the video."
        )
    return State(self.encoder.start(batch, height, width), True)

  def moments(
    self, video: Float[Array, "B t h w 3"], state: State
  ) -> tuple[Video, Video, State]:
    """Means and log variances of the next latents, not normalised.

    Args:
      video: Pixels in [-1, 1]; the first chunk has 4 k + 1 frames, others 4 k.
      state: From `start_encode` or the chunk before.

    Raises:
      ValueError: If the number of frames does not fit.
    """
    self._check_frames(video.shape[1], first=state.first)
    out, state = _in_groups(
      self.encoder, video, state, group=self.temporal_stride
    )
    mean, log_variance = jnp.split(
      self.quant(out).astype(jnp.float32), 2, axis=-1
    )
    return mean, log_variance, state

  def _check_frames(self, frames: int, *, first: bool) -> None:
    stride = self.temporal_stride
    surplus = max(0, frames - first) % stride
    if not frames or surplus:
      rule = f"{'one more than ' if first else ''}a multiple of {stride}"
      raise ValueError(
        f"video has {frames} frames but must have {rule}; drop {surplus} or "
        "give more."
      )

  def encode_chunk(
    self, video: UInt8[Array, "B t h w 3"], state: State
  ) -> tuple[Video, State]:
    """The next latents, normalised: the posterior mean, nothing is drawn."""
    pixels = video.astype(jnp.float32) / 127.5 - 1
    mean, _, state = self.moments(pixels, state)
    return (mean - self._mean) / self._std, state

  def encode(self, video: UInt8[Array, "B t h w 3"]) -> Video:
    """Latents of a whole clip of 4 k + 1 frames.

    Raises:
      ValueError: If frames or sizes do not fit.
    """
    state = self.start_encode(video.shape[0], *video.shape[2:4])
    return self.encode_chunk(video, state)[0]

  def start(self, batch: int, height: int, width: int) -> State:
    """State of the decoder before the first latent frame.

    Args:
      batch: Videos.
      height: Latent rows.
      width: Latent columns.
    """
    return State(self.decoder.start(batch, height, width), True)

  def decode_unclipped(
    self, latents: Video, state: State
  ) -> tuple[layers.Out, State]:
    """Pixels in about [-1, 1], float32, and the state after them."""
    raw = latents.astype(jnp.float32) * self._std + self._mean
    x = self.post_quant(raw)
    out, state = _in_groups(self.decoder, x, state, group=1)
    return out.astype(jnp.float32), state

  def decode_chunk(
    self, latents: Video, state: State
  ) -> tuple[Float[Array, "B t h w 3"], State]:
    """The next frames in [0, 1]: the first latent gives one, others four."""
    pixels, state = self.decode_unclipped(latents, state)
    return jnp.clip(0.5 * pixels + 0.5, 0, 1), state

  def decode(self, latents: Video) -> Float[Array, "B t h w 3"]:
    """Pixels of a whole clip."""
    state = self.start(latents.shape[0], *latents.shape[2:4])
    return self.decode_chunk(latents, state)[0]

  @property
  def _mean(self) -> Array:
    return jnp.asarray(self.config.mean, jnp.float32)

  @property
  def _std(self) -> Array:
    return jnp.asarray(self.config.std, jnp.float32)


def abstract(config: VaeConfig) -> WanVAE:
  """The network with shapes in place of arrays."""
  return nnx.eval_shape(lambda: WanVAE(config, rngs=nnx.Rngs(0)))
