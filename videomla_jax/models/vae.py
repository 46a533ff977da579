"""Codecs and the Wan VAE: pixels to latents and back, streaming both ways.

docs/method.md, section 4. The released VAE has strides 4 x 8 x 8 after a first
frame that stands alone: 4 (T - 1) + 1 pixel frames are T latent frames. Both
directions work on one group of frames at a time (one latent frame, one or four
pixel frames) and carry an explicit state, so video of any length needs the
memory of one group, and cutting it into chunks does not change a bit of it.
"""

from collections.abc import Callable
import dataclasses
from typing import Protocol, runtime_checkable

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt8

from videomla_jax.models import vae_coders
from videomla_jax.models import vae_layers as layers
from videomla_jax.ops import convolution
from videomla_jax.ops import device

Video = Float[Array, "B T H W C"]


@runtime_checkable
class Decoder(Protocol):
  """Turns latents into pixels, chunk by chunk.

  Generation asks no more of it. Released models have `WanVAE` or
  `tiny_decoder.TinyDecoder`, small ones `small_world.codecs.PixelCodec`.

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


@runtime_checkable
class Codec(Decoder, Protocol):
  """Turns pixels into latents, too."""

  def encode(self, video: UInt8[Array, "B t h w c"]) -> Array:
    """Returns the latents `[B, T, H, W, C]` of a whole clip."""


@dataclasses.dataclass(frozen=True)
class State:
  """Holds what a coder remembers between chunks.

  Attributes:
    memory: Memory of every layer; zeros before the first frame.
    first: Whether the first frame is still to come. It is part of the tree's
      structure, so one program is compiled for the first chunk and another for
      all others.
  """

  memory: PyTree
  first: bool


jax.tree_util.register_dataclass(State, ["memory"], ["first"])


def in_groups(
  coder: Callable[..., tuple[layers.Out, PyTree]],
  x: Video,
  state: State,
  *,
  group: int,
) -> tuple[layers.Out, State]:
  """Runs a coder over a chunk, group by group.

  Args:
    coder: Turns a group and the memory before it into outputs and the memory
      after it; its argument `first` is true for the group of the first frame.
    x: Frames of the chunk, pixels or latents.
    state: State before the chunk.
    group: Frames of a group after the first.

  Returns:
    All outputs, and the state after them.
  """
  # The first frame is a group for itself, with a program of its own.
  pieces, memory = [], state.memory
  if state.first:
    head, memory = coder(x[:, :1], memory, first=True)
    pieces, x = [head], x[:, 1:]
  # The first frame may be all that the chunk has.
  if 0 < x.shape[1] == group:
    # Without a loop: XLA has no fast gradient of convolutions in loops on CPUs.
    last, memory = coder(x, memory, first=False)
    pieces.append(last)
  elif x.shape[1]:
    count = x.shape[1] // group
    groups = x.reshape(x.shape[0], count, group, *x.shape[2:])

    # A scan keeps the activations of one group alive, whatever the length.
    def step(memory: PyTree, frames: Video) -> tuple[PyTree, layers.Out]:
      out, memory = coder(frames, memory, first=False)
      return memory, out

    memory, outs = jax.lax.scan(step, memory, jnp.moveaxis(groups, 1, 0))
    outs = jnp.moveaxis(outs, 0, 1)
    pieces.append(outs.reshape(outs.shape[0], -1, *outs.shape[3:]))
  return jnp.concatenate(pieces, axis=1), State(memory, False)


def laid_out[Coder: nnx.Module](coder: Coder, form: str = "sum") -> Coder:
  """Returns a coder whose weights need no work before their products.

  A program does this once, before it loops over groups of frames.

  Args:
    coder: A module with layers of `vae_layers`.
    form: Key of `convolution.FORMS`.
  """
  ready = nnx.merge(*nnx.split(coder))
  for _, module in nnx.iter_modules(ready):
    if isinstance(module, layers.Conv):
      module.lay_out(form)
    elif isinstance(module, layers.Norm):
      module.form = form
  return ready


class WanVAE(nnx.Module):
  """Turns pixels into normalised latents and latents into pixels.

  Programs that use it on a GPU are compiled with `convolution.CHANNELS_LAST`;
  without it they are right, but slow.
  """

  def __init__(self, config: vae_coders.VaeConfig, *, rngs: nnx.Rngs) -> None:
    self.config = config
    dtype, channels = jnp.dtype(config.dtype), config.channels
    self.encoder = vae_coders.Encoder(config, rngs=rngs)
    self.quant = layers.Pointwise(
      2 * channels, 2 * channels, dtype=dtype, rngs=rngs
    )
    self.decoder = vae_coders.Decoder(config, rngs=rngs)
    self.post_quant = layers.Pointwise(
      channels, channels, dtype=dtype, rngs=rngs
    )

  @property
  def form(self) -> str:
    """Form of the convolutions over time, a key of `convolution.FORMS`."""
    chosen = self.config.convolution
    return chosen or convolution.form_for(device.current().platform)

  @property
  def channels(self) -> int:
    """Number of latent channels C."""
    return self.config.channels

  @property
  def pixel_channels(self) -> int:
    """Number of colours: red, green and blue."""
    return 3

  @property
  def temporal_stride(self) -> int:
    """Number of pixel frames per latent frame after the first."""
    return self.config.temporal_stride

  @property
  def spatial_stride(self) -> int:
    """Number of pixels per latent pixel, along one side."""
    return self.config.spatial_stride

  def start_encode(self, batch: int, height: int, width: int) -> State:
    """Returns the state before the first pixel frame.

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
    self,
    video: Float[Array, "B t h w 3"],
    state: State,
    *,
    at_once: bool = False,
  ) -> tuple[Video, Video, State]:
    """Returns means and log variances of the next latents, not normalised.

    Args:
      video: Pixels in [-1, 1]; the first chunk has 4 k + 1 frames, others 4 k.
      state: From `start_encode` or the chunk before.
      at_once: Whether all frames after the first are one group, which takes
        more memory and no loop.

    Raises:
      ValueError: If the number of frames does not fit.
    """
    self._check_frames(video.shape[1], first=state.first)
    encoder = laid_out(self.encoder, self.form)
    rest = video.shape[1] - state.first
    group = rest if at_once else self.temporal_stride
    out, state = in_groups(encoder, video, state, group=group)
    # The released projection has means first; nothing here draws from them.
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
    """Returns the next latents, normalised, and the state after them.

    They are the posterior's mean: nothing is drawn.

    Args:
      video: Pixels 0..255; the first chunk has 4 k + 1 frames, others 4 k.
      state: From `start_encode` or the chunk before.

    Raises:
      ValueError: If the number of frames does not fit.
    """
    pixels = video.astype(jnp.float32) / 127.5 - 1
    mean, _, state = self.moments(pixels, state)
    return self.normalise(mean), state

  def normalise(self, latents: Video) -> Float[Array, "B T H W C"]:
    """Returns latents of mean 0 and deviation 1, by the config's statistics.

    Args:
      latents: What `moments` returned, or draws from it.
    """
    return (latents - self._mean) / self._std

  def encode(self, video: UInt8[Array, "B t h w 3"]) -> Video:
    """Returns the latents of a whole clip of 4 k + 1 frames.

    Raises:
      ValueError: If frames or sizes do not fit.
    """
    state = self.start_encode(video.shape[0], *video.shape[2:4])
    return self.encode_chunk(video, state)[0]

  def start(self, batch: int, height: int, width: int) -> State:
    """Returns the decoder's state before the first latent frame.

    Args:
      batch: Videos.
      height: Latent rows.
      width: Latent columns.
    """
    return State(self.decoder.start(batch, height, width), True)

  def latents_at_once(self, count: int, *, form: str) -> int:
    """Returns how many latent frames are decoded side by side.

    Args:
      count: Latent frames of a chunk, without the first of a video.
      form: Form of the convolutions over time.
    """
    spare = self.config.spare_memory
    most = 1 if spare else convolution.FORMS[form].latents_at_once
    return max(n for n in range(1, most + 1) if count % n == 0)

  def decode_unclipped(
    self, latents: Video, state: State, *, at_once: bool = False
  ) -> tuple[layers.Out, State]:
    """Returns pixels in about [-1, 1], float32, and the state after them.

    Args:
      latents: Normalised latents.
      state: From `start` or the chunk before.
      at_once: Whether all frames after the first are one group, as in
        `moments`.
    """
    # Statistics are applied in float32: they scale channels by up to 3.3.
    raw = latents.astype(jnp.float32) * self._std + self._mean
    x = self.post_quant(raw)
    decoder = laid_out(self.decoder, self.form)
    rest = x.shape[1] - state.first
    group = rest if at_once else self.latents_at_once(rest, form=self.form)
    out, state = in_groups(decoder, x, state, group=group)
    return out.astype(jnp.float32), state

  def decode_chunk(
    self, latents: Video, state: State
  ) -> tuple[Float[Array, "B t h w 3"], State]:
    """Returns the next frames in [0, 1], and the state after them.

    The first latent frame of a video gives one pixel frame, all others four.
    """
    pixels, state = self.decode_unclipped(latents, state)
    return jnp.clip(0.5 * pixels + 0.5, 0, 1), state

  def decode(self, latents: Video) -> Float[Array, "B t h w 3"]:
    """Returns the pixels of a whole clip in [0, 1]."""
    state = self.start(latents.shape[0], *latents.shape[2:4])
    return self.decode_chunk(latents, state)[0]

  @property
  def _mean(self) -> Array:
    return jnp.asarray(self.config.mean, jnp.float32)

  @property
  def _std(self) -> Array:
    return jnp.asarray(self.config.std, jnp.float32)


def abstract(config: vae_coders.VaeConfig) -> WanVAE:
  """Returns the network with shapes in place of arrays."""
  return nnx.eval_shape(lambda: WanVAE(config, rngs=nnx.Rngs(0)))
