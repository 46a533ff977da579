"""Layers of the Wan VAE, each a function of its input and its memory.

spec/wan.md B1 and B3. A layer is called frame group after frame group: it takes
what it remembers of earlier frames and returns what to remember next, so video
may be cut anywhere. `first` marks the group of the single first frame, which
the temporal resamplers treat apart; it is a Python bool and compiles once each.
Layout `[B, T, H, W, C]`.
"""

import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from videomla_jax.ops.latent_attention import reference

Video = Float[Array, "B T H W C"]
Out = Float[Array, "B t h w c"]
_EPSILON = 1e-12  # on the norm, not on its square


def conv_2d(x: Video, kernel: Array, *, stride: int = 1, pad=(1, 1)) -> Out:
  """Convolves every frame by itself; `pad` is before and after, both axes."""
  batch, frames = x.shape[:2]
  out = jax.lax.conv_general_dilated(
    x.reshape(-1, *x.shape[2:]),
    kernel,
    (stride, stride),
    [pad, pad],
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return out.reshape(batch, frames, *out.shape[1:])


class Conv(nnx.Module):
  """Weights of a convolution, `[*window, in, out]`, float32 master copies."""

  def __init__(self, window, inputs: int, outputs: int, *, dtype, rngs):
    self.dtype = dtype
    bound = 1 / math.sqrt(math.prod(window) * inputs)

    def uniform(*shape):
      key = rngs.params()
      return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    self.kernel = nnx.Param(uniform(*window, inputs, outputs))
    self.bias = nnx.Param(uniform(outputs))

  def weights(self) -> tuple[Array, Array]:
    """Kernel and bias in the dtype of the products."""
    return self.kernel[...].astype(self.dtype), self.bias[...].astype(
      self.dtype
    )


class Pointwise(Conv):
  """1 x 1 x 1 convolution: no memory."""

  def __init__(self, inputs: int, outputs: int, *, dtype, rngs):
    super().__init__((), inputs, outputs, dtype=dtype, rngs=rngs)

  def __call__(self, x: Video) -> Out:
    """Applies the product to every pixel."""
    kernel, bias = self.weights()
    return x.astype(self.dtype) @ kernel + bias


class FrameConv(Conv):
  """3 x 3 convolution of single frames: no memory."""

  def __init__(self, inputs: int, outputs: int, *, dtype, rngs):
    super().__init__((3, 3), inputs, outputs, dtype=dtype, rngs=rngs)

  def __call__(self, x: Video, *, stride: int = 1, pad=(1, 1)) -> Out:
    """Applies the convolution."""
    kernel, bias = self.weights()
    return conv_2d(x.astype(self.dtype), kernel, stride=stride, pad=pad) + bias


class CausalConv(Conv):
  """Convolution over three frames: this one and the two before it.

  A sum of three products over single frames, which is up to twice as fast as
  one over space and time on a CPU.
  """

  def __init__(
    self, inputs: int, outputs: int, *, dtype, rngs, spatial: int = 3
  ):
    window = (3, spatial, spatial)
    super().__init__(window, inputs, outputs, dtype=dtype, rngs=rngs)

  def start(self, batch: int, height: int, width: int) -> Array:
    """Memory before the first frame: zeros, which is left padding."""
    shape = (batch, 2, height, width, self.kernel.shape[-2])
    return jnp.zeros(shape, self.dtype)

  def __call__(self, x: Video, memory: Array) -> tuple[Out, Array]:
    """Convolves, with the last two input frames as memory."""
    seen = jnp.concatenate([memory, x.astype(self.dtype)], axis=1)
    return self.over(seen), seen[:, -2:]

  def over(self, seen: Video, *, stride: int = 1) -> Out:
    """Output of every third frame onward, `stride` frames apart."""
    kernel, bias = self.weights()
    pad = (kernel.shape[1] // 2,) * 2
    last = seen.shape[1] - 2
    return bias + sum(
      conv_2d(seen[:, i : i + last : stride], kernel[i], pad=pad)
      for i in range(3)
    )


class Norm(nnx.Module):
  """Unit length over channels, times sqrt(C) and a gain; in float32."""

  def __init__(self, features: int):
    self.gain = nnx.Param(jnp.ones((features,), jnp.float32))

  def __call__(self, x: Video) -> Out:
    """Normalises each pixel."""
    x32 = x.astype(jnp.float32)
    length = jnp.sqrt(jnp.sum(x32 * x32, axis=-1, keepdims=True))
    unit = x32 / jnp.maximum(length, _EPSILON)
    return (unit * (x.shape[-1] ** 0.5 * self.gain[...])).astype(x.dtype)


class Residual(nnx.Module):
  """Two norms, SiLUs and causal convolutions beside a shortcut."""

  def __init__(self, inputs: int, outputs: int, *, dtype, rngs):
    self.norm_in, self.norm_out = Norm(inputs), Norm(outputs)
    self.conv_in = CausalConv(inputs, outputs, dtype=dtype, rngs=rngs)
    self.conv_out = CausalConv(outputs, outputs, dtype=dtype, rngs=rngs)
    if inputs == outputs:
      self.shortcut = None
    else:
      self.shortcut = Pointwise(inputs, outputs, dtype=dtype, rngs=rngs)

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Memory of both convolutions."""
    convs = (self.conv_in, self.conv_out)
    return tuple(c.start(batch, height, width) for c in convs)

  def __call__(
    self, x: Video, memory: PyTree, *, first: bool
  ) -> tuple[Out, PyTree]:
    """Applies the block."""
    del first
    y, before = self.conv_in(jax.nn.silu(self.norm_in(x)), memory[0])
    y, after = self.conv_out(jax.nn.silu(self.norm_out(y)), memory[1])
    return y + (x if self.shortcut is None else self.shortcut(x)), (
      before,
      after,
    )


class FrameAttention(nnx.Module):
  """Single-head attention among the pixels of a frame: no memory."""

  def __init__(self, features: int, *, dtype, rngs):
    self.norm = Norm(features)
    self.qkv = Pointwise(features, 3 * features, dtype=dtype, rngs=rngs)
    self.out = Pointwise(features, features, dtype=dtype, rngs=rngs)

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Nothing."""
    del batch, height, width
    return ()

  def __call__(
    self, x: Video, memory: PyTree, *, first: bool
  ) -> tuple[Out, PyTree]:
    """Attends frame by frame."""
    del first
    batch, frames, height, width, features = x.shape
    tokens = self.qkv(self.norm(x)).reshape(
      batch * frames, height * width, 1, 3 * features
    )
    query, key, value = jnp.split(tokens, 3, axis=-1)
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

  Frames: y_0 = x_0 and y_j = conv(x_{2j-2}, x_{2j-1}, x_{2j}).
  """

  def __init__(self, features: int, *, temporal: bool, dtype, rngs):
    self.frame_conv = FrameConv(features, features, dtype=dtype, rngs=rngs)
    self.time_conv = (
      CausalConv(features, features, dtype=dtype, rngs=rngs, spatial=1)
      if temporal
      else None
    )

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """The last frame, at the smaller size."""
    if self.time_conv is None:
      return ()
    whole = self.time_conv.start(batch, height // 2, width // 2)
    return whole[:, :1]

  def __call__(
    self, x: Video, memory: PyTree, *, first: bool
  ) -> tuple[Out, PyTree]:
    """Zeros are padded below and to the right only."""
    y = self.frame_conv(x, stride=2, pad=(0, 1))
    if self.time_conv is None:
      return y, memory
    last = y[:, -1:]
    if not first:
      y = self.time_conv.over(jnp.concatenate([memory, y], axis=1), stride=2)
    return y, last


class Upsample(nnx.Module):
  """Doubles rows and columns, and with `temporal` the frames after the first.

  The time convolution sees frames from the second on; its two halves of
  channels are the even and the odd frames.
  """

  def __init__(self, features: int, *, temporal: bool, dtype, rngs):
    self.frame_conv = FrameConv(features, features // 2, dtype=dtype, rngs=rngs)
    self.time_conv = (
      CausalConv(features, 2 * features, dtype=dtype, rngs=rngs, spatial=1)
      if temporal
      else None
    )

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Memory of the time convolution; the first frame never enters it."""
    if self.time_conv is None:
      return ()
    return self.time_conv.start(batch, height, width)

  def __call__(
    self, x: Video, memory: PyTree, *, first: bool
  ) -> tuple[Out, PyTree]:
    """Doubles time, then space (nearest neighbour)."""
    if self.time_conv is not None and not first:
      y, memory = self.time_conv(x, memory)
      pair = jnp.stack(jnp.split(y, 2, axis=-1), axis=2)
      x = pair.reshape(x.shape[0], -1, *x.shape[2:])
    x = x.repeat(2, axis=2).repeat(2, axis=3)
    return self.frame_conv(x), memory


class Chain(nnx.Module):
  """Layers one after the other; its memory is a tuple with theirs."""

  def __init__(self, layers: list[Any]):
    self.layers = nnx.List(layers)

  def start(self, batch: int, height: int, width: int) -> PyTree:
    """Memory of every layer, at the size that reaches it."""
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
    """Applies all layers."""
    after = []
    for layer, past in zip(self.layers, memory, strict=True):
      x, past = layer(x, past, first=first)
      after.append(past)
    return x, tuple(after)
