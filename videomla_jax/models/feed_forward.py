"""The feed-forward of a block, whole or by slices of its hidden channels."""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from videomla_jax import sharding
from videomla_jax.models import layers


def gelu(x: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
  """Applies the tanh approximation of GELU, as everywhere in Wan."""
  return jax.nn.gelu(x, approximate=True)


class MLP(nnx.Module):
  """Two linear layers with an activation between them."""

  def __init__(
    self,
    sizes: tuple[int, int, int],
    activation: Callable[[Array], Array],
    *,
    hidden: str,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ) -> None:
    """Makes both layers with random weights.

    Args:
      sizes: Input, hidden and output channels.
      activation: Applied to the hidden channels.
      hidden: Name of the hidden channels in `sharding.ACTIVATIONS`, which says
        how they are split over devices.
      dtype: Dtype of the products.
      rngs: Random keys.
    """
    self.activation, self.hidden = activation, hidden
    self.into = layers.linear(sizes[0], sizes[1], dtype=dtype, rngs=rngs)
    self.out = layers.linear(sizes[1], sizes[2], dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """Applies both layers to the last axis."""
    rows, by_token = layers.rows_of(self.into, x)
    return by_token(self.out(self._between(rows)))

  def to_residual(self, x: Float[Array, "*B I"]) -> Float32[Array, "*B O"]:
    """Applies both layers and adds the last bias in float32."""
    rows, by_token = layers.rows_of(self.into, x)
    return by_token(layers.to_residual(self.out, self._between(rows)))

  def _between(self, x: Float[Array, "*B I"]) -> Float[Array, "*B F"]:
    """Returns the hidden channels."""
    return sharding.constrain(self.activation(self.into(x)), self.hidden)


def num_slices(width: int, hidden: int) -> int:
  """Returns how many slices of hidden channels `by_slices` works through.

  A slice has at most three times the channels of a token. It then takes no more
  memory than queries, keys and values did, which are gone by then.

  Args:
    width: Channels of a token.
    hidden: Hidden channels of one device.
  """
  return -(-hidden // (3 * width))


def by_slices(
  stack: MLP, layer: Array | int, x: Float[Array, "*B I"]
) -> Float32[Array, "*B O"]:
  """Applies one MLP of a stack, one slice of hidden channels after the other.

  For passes without gradients. The result is that of `MLP`, docs/method.md,
  Eq. (2.8): W₂ a(W₁ x) is the sum over slices p of W₂ₚ a(W₁ₚ x), where every
  device slices the channels that it has. In float8 each slice of a token has a
  scale of its own.

  Args:
    stack: MLPs of all layers, leaves `[layers, ...]`.
    layer: Index of the layer to apply.
    x: Input; the products have its dtype.

  Returns:
    The sum of all slices and the last bias, in float32.
  """
  assert stack.into.bias is not None
  assert stack.out.bias is not None
  kernels = layers.weights(stack.into), layers.weights(stack.out)
  weights = kernels[0], stack.into.bias[...], kernels[1]
  devices = sharding.devices_along("tensor")
  width, hidden = x.shape[-1], stack.into.bias.shape[-1]
  # Axes of the hidden channels; weights in float8 are transposed.
  float8 = isinstance(stack.into, layers.Float8Linear)
  axes = (1, 1, 2) if float8 else (2, 1, 1)
  own = hidden // devices
  count = num_slices(width, own)
  done: list[Array] = []
  for number in range(count):
    # Bounds are rounded, so any number of slices fits any number of channels.
    channels = range(number * own // count, (number + 1) * own // count)
    # Nothing of a slice may exist before the slice in front of it has ended.
    # Without the barrier XLA copies the weights of a whole layer ahead.
    weights, x, done = jax.lax.optimization_barrier((weights, x, done))
    into, bias, out = (
      jax.tree.map(
        lambda leaf, axis=axis, channels=channels: _slice(
          leaf, layer, axis, channels, devices
        ),
        w,
      )
      for w, axis in zip(weights, axes, strict=True)
    )
    between = layers.product(stack.into, into, x) + bias.astype(x.dtype)
    between = sharding.constrain(stack.activation(between), stack.hidden)
    done.append(layers.product(stack.out, out, between))
  # Slices are summed in float32, or every further slice would round again.
  bias = jax.lax.dynamic_index_in_dim(stack.out.bias[...], layer, 0, False)
  return sum((y.astype(jnp.float32) for y in done), start=bias)


def _slice(
  stack: Array, layer: Array | int, axis: int, channels: range, devices: int
) -> Array:
  """Takes the same hidden channels of each device out of one layer.

  Args:
    stack: Weights of all layers.
    layer: Index of the layer.
    axis: Axis of the hidden channels.
    channels: Channels to take, counted on each device.
    devices: Devices that the hidden channels are split over.
  """
  if stack.shape[axis] == 1:
    # Scales of output channels, which all hidden channels share.
    return jax.lax.dynamic_index_in_dim(stack, layer, 0, False)
  before, after = stack.shape[1:axis], stack.shape[axis + 1 :]
  # Layer and channels are one slice, which XLA copies while it computes.
  # The axis of devices is whole in the cut, so that each device takes channels
  # out of its own memory.
  cut = jax.lax.dynamic_slice(
    stack.reshape(-1, *before, devices, stack.shape[axis] // devices, *after),
    (layer, *(0 for _ in before), 0, channels.start, *(0 for _ in after)),
    (1, *before, devices, len(channels), *after),
  )
  return cut.reshape(*before, devices * len(channels), *after)
