"""Layers of the Wan VAE: docs/method.md, section 4.1.

A layer takes the next frames and its memory, and returns what to remember for
the frames after them, so video may be cut anywhere. `first` marks the group
that holds the first frame alone, which the temporal resamplers leave as it is.
It is a Python bool, so each of its values compiles to a program of its own.
The layout is `[B, T, H, W, C]`.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from videomla_jax.ops import convolution
from videomla_jax.ops.latent_attention import reference

Video = Float[Array, "B T H W C"]
Out = Float[Array, "B t h w c"]
_EPSILON = 1e-12  # bounds the length from below, not its square
_IN_TIME = 5  # axes of the weights of a convolution over time


class Conv(nnx.Module):
  """Holds the weights of a convolution as float32 master copies.

  A program that uses them several times lays them out first: `vae.laid_out`.
  """

  def __init__(
    self,
    window: tuple[int, ...],
    inputs: int,
    outputs: int,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    bias: bool = True,
  ) -> None:
    """Draws the weights as PyTorch does.

    Args:
      window: Frames, rows and columns that one output sees.
      inputs: Channels in.
      outputs: Channels out.
      dtype: Type of the products.
      rngs: Source of the weights.
      bias: Whether a constant is added to every channel.
    """
    self.dtype, self.inputs = dtype, inputs
    self.form = "sum"
    # This is PyTorch's default: a VAE trained from here starts like Wan's.
    bound = 1 / math.sqrt(math.prod(window) * inputs)

    def uniform(*shape: int) -> Array:
      key = rngs.params()
      return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    self.kernel = nnx.Param(uniform(*window, inputs, outputs))
    self.bias = nnx.Param(uniform(outputs)) if bias else None

  def weights(self) -> tuple[Array, Array]:
    """Returns kernel `[*window, in, out]` and bias in the products' type."""
    bias = jnp.zeros(()) if self.bias is None else self.bias[...]
    return self.kernel[...].astype(self.dtype), bias.astype(self.dtype)

  def lay_out(self, form: str) -> None:
    """Replaces the weights by what the products of a form take.

    Args:
      form: Key of `convolution.FORMS`, for convolutions over time.
    """
    kernel, bias = self.weights()
    if self.bias is not None:
      self.bias = nnx.Param(bias)
    if kernel.ndim == _IN_TIME:
      kernel = convolution.FORMS[form].lay_out(kernel)
    self.kernel, self.form = nnx.Param(kernel), form


class Pointwise(Conv):
  """A 1 x 1 x 1 convolution, which needs no memory."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    bias: bool = True,
  ) -> None:
    super().__init__((), inputs, outputs, dtype=dtype, rngs=rngs, bias=bias)

  def __call__(self, x: Video) -> Out:
    """Returns the product for every pixel."""
    kernel, bias = self.weights()
    return x.astype(self.dtype) @ kernel + bias


class FrameConv(Conv):
  """A 3 x 3 convolution of single frames, which needs no memory."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    bias: bool = True,
  ) -> None:
    window = (3, 3)
    super().__init__(window, inputs, outputs, dtype=dtype, rngs=rngs, bias=bias)

  def __call__(
    self, x: Video, *, stride: int = 1, pad: tuple[int, int] = (1, 1)
  ) -> Out:
    """Returns convolved frames; `stride`, `pad`: `convolution.of_frames`."""
    kernel, bias = self.weights()
    x = x.astype(self.dtype)
    return convolution.of_frames(x, kernel, stride=stride, pad=pad) + bias

  def doubled(self, x: Video) -> Out:
    """Returns convolved frames, each pixel repeated 2 x 2 before."""
    kernel, bias = self.weights()
    return convolution.of_doubled_frames(x.astype(self.dtype), kernel) + bias


class CausalConv(Conv):
  """A convolution over three frames: this one and the two before it."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    spatial: int = 3,
  ) -> None:
    window = (3, spatial, spatial)
    super().__init__(window, inputs, outputs, dtype=dtype, rngs=rngs)

  def start(self, batch: int, height: int, width: int) -> Array:
    """Returns two frames of zeros, which pad the video on the left."""
    # Memory has the type of the products: a scan must find it unchanged.
    shape = (batch, 2, height, width, self.inputs)
    return jnp.zeros(shape, self.dtype)

  def __call__(self, x: Video, memory: Array) -> tuple[Out, Array]:
    """Returns the convolved frames and the last two inputs as memory."""
    frames = jnp.concatenate([memory, x.astype(self.dtype)], axis=1)
    if not convolution.FORMS[self.form].one_buffer:
      return self.over(frames), frames[:, -2:]
    # Barriers let XLA write the frames once, take the memory out of them, and
    # do so before the convolution: at the end of the program it would hold the
    # frames of all layers.
    frames = jax.lax.optimization_barrier(frames)
    frames, after = jax.lax.optimization_barrier((frames, frames[:, -2:]))
    return self.over(frames), after

  def over(self, frames: Video, *, stride: int = 1) -> Out:
    """Returns the outputs that see three of the given frames.

    Args:
      frames: At least three frames.
      stride: Frames from one output to the next.
    """
    kernel, bias = self.weights()
    out = convolution.FORMS[self.form].apply(frames, kernel, stride=stride)
    return out[..., : bias.shape[0]] + bias


class Norm(nnx.Module):
  """Scales each pixel to length sqrt(C) and by a gain, in float32.

  docs/method.md, Eq. (4.1).
  """

  def __init__(self, features: int) -> None:
    self.gain = nnx.Param(jnp.ones((features,), jnp.float32))
    self.form = "sum"

  def __call__(self, x: Video) -> Out:
    """Returns normalised pixels in the type of `x`."""
    # bfloat16 has 8 bits, too few for a sum of squares over 384 channels.
    x32 = x.astype(jnp.float32)
    length = jnp.sqrt(jnp.sum(x32 * x32, axis=-1, keepdims=True))
    if convolution.FORMS[self.form].one_buffer:
      # What follows is computed where the convolution's frames are written;
      # without a barrier XLA normalises into an array of its own before.
      length = jax.lax.optimization_barrier(length)
    unit = x32 / jnp.maximum(length, _EPSILON)
    return (unit * (x.shape[-1] ** 0.5 * self.gain[...])).astype(x.dtype)


class Residual(nnx.Module):
  """Adds two causal convolutions, each behind a norm and SiLU, to the input."""

  def __init__(
    self, inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs
  ) -> None:
    self.norm_in, self.norm_out = Norm(inputs), Norm(outputs)
    self.conv_in = CausalConv(inputs, outputs, dtype=dtype, rngs=rngs)
    self.conv_out = CausalConv(outputs, outputs, dtype=dtype, rngs=rngs)
    if inputs == outputs:
      self.shortcut = None
    else:
      self.shortcut = Pointwise(inputs, outputs, dtype=dtype, rngs=rngs)

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Returns the memory of both convolutions before the first frame."""
    convs = (self.conv_in, self.conv_out)
    return tuple(c.start(batch, height, width) for c in convs)

  def __call__(
    self, x: Video, memory: PyTree, *, first: bool
  ) -> tuple[Out, PyTree]:
    """Returns the block's output and the memory of both convolutions."""
    del first
    y, before = self.conv_in(jax.nn.silu(self.norm_in(x)), memory[0])
    y, after = self.conv_out(jax.nn.silu(self.norm_out(y)), memory[1])
    return y + (x if self.shortcut is None else self.shortcut(x)), (
      before,
      after,
    )


class FrameAttention(nnx.Module):
  """Adds single-head attention among the pixels of each frame."""

  def __init__(
    self, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs
  ) -> None:
    self.norm = Norm(features)
    self.qkv = Pointwise(features, 3 * features, dtype=dtype, rngs=rngs)
    self.out = Pointwise(features, features, dtype=dtype, rngs=rngs)

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Returns an empty memory: a frame attends to itself alone."""
    del batch, height, width
    return ()

  def __call__(
    self, x: Video, memory: PyTree, *, first: bool
  ) -> tuple[Out, PyTree]:
    """Returns the frames with what their pixels attend to added."""
    del first
    batch, frames, height, width, features = x.shape
    tokens = self.qkv(self.norm(x)).reshape(
      batch * frames, height * width, 1, 3 * features
    )
    query, key, value = jnp.split(tokens, 3, axis=-1)
    # One head over 6,240 pixels at 480 x 832: the scores of a frame are 156 MB.
    out = reference.attention(
      query,
      key,
      value,
      jnp.ones(key.shape[:2], bool),
      scale=1 / math.sqrt(features),
    )
    return x + self.out(out.reshape(x.shape)), memory


class Downsample(nnx.Module):
  """Halves rows and columns, and with `temporal` the frames after the first.

  docs/method.md, Eq. (4.2).
  """

  def __init__(
    self,
    features: int,
    *,
    temporal: bool,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ) -> None:
    self.frame_conv = FrameConv(features, features, dtype=dtype, rngs=rngs)
    self.time_conv = (
      CausalConv(features, features, dtype=dtype, rngs=rngs, spatial=1)
      if temporal
      else None
    )

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Returns a frame of zeros, at the size after halving, or no memory."""
    if self.time_conv is None:
      return ()
    whole = self.time_conv.start(batch, height // 2, width // 2)
    return whole[:, :1]

  def __call__(
    self, x: Video, memory: PyTree, *, first: bool
  ) -> tuple[Out, PyTree]:
    """Returns smaller frames, and the last of them as memory.

    Args:
      x: One frame if `first`, else an even number of frames.
      memory: From `start` or from the call before.
      first: Whether `x` holds the first frame of the video alone.
    """
    # Zeros lie below and to the right only, as in the released network.
    y = self.frame_conv(x, stride=2, pad=(0, 1))
    if self.time_conv is None:
      return y, memory
    # The first frame skips the time convolution, but the next group sees it.
    last = y[:, -1:]
    if not first:
      # The frame before makes the windows of three start two frames apart.
      y = self.time_conv.over(jnp.concatenate([memory, y], axis=1), stride=2)
    return y, last


class Upsample(nnx.Module):
  """Doubles rows and columns, and with `temporal` the frames after the first.

  docs/method.md, Eq. (4.3): the two halves of the time convolution's channels
  are two frames.
  """

  def __init__(
    self,
    features: int,
    *,
    temporal: bool,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ) -> None:
    self.frame_conv = FrameConv(features, features // 2, dtype=dtype, rngs=rngs)
    self.time_conv = (
      CausalConv(features, 2 * features, dtype=dtype, rngs=rngs, spatial=1)
      if temporal
      else None
    )

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Returns the memory of the time convolution, if there is one."""
    if self.time_conv is None:
      return ()
    return self.time_conv.start(batch, height, width)

  def __call__(
    self, x: Video, memory: PyTree, *, first: bool
  ) -> tuple[Out, PyTree]:
    """Returns larger frames; each pixel is repeated before the convolution.

    Args:
      x: Frames.
      memory: From `start` or from the call before; the first frame of a video
        never enters it.
      first: Whether `x` holds the first frame of the video alone.
    """
    if self.time_conv is not None and not first:
      y, memory = self.time_conv(x, memory)
      pair = jnp.stack(jnp.split(y, 2, axis=-1), axis=2)
      x = pair.reshape(x.shape[0], -1, *x.shape[2:])
    # The released order: the time convolution sees a quarter of the pixels.
    return self.frame_conv.doubled(x), memory


type Layer = Residual | FrameAttention | Downsample | Upsample


class Chain(nnx.Module):
  """Applies layers one after the other and keeps the memory of each."""

  def __init__(self, layers: list[Layer]) -> None:
    self.layers = nnx.List(layers)

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Returns the memory of every layer, at the size that reaches it."""
    memory = []
    for layer in self.layers:
      memory.append(layer.start(batch, height, width))
      if isinstance(layer, Downsample):
        height, width = height // 2, width // 2
      elif isinstance(layer, Upsample):
        height, width = 2 * height, 2 * width
    return tuple(memory)

  def __call__(
    self, x: Video, memory: PyTree, *, first: bool
  ) -> tuple[Out, PyTree]:
    """Returns the output of the last layer and the memory of all."""
    after = []
    for layer, past in zip(self.layers, memory, strict=True):
      x, past = layer(x, past, first=first)
      after.append(past)
    return x, tuple(after)
