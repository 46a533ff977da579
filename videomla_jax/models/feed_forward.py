"""The feed-forward of a block, whole or by parts of its hidden channels."""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from videomla_jax import sharding
from videomla_jax.models import layers


def gelu(x: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
  """GELU, tanh approximation, as everywhere in Wan."""
  return jax.nn.gelu(x, approximate=True)


class MLP(nnx.Module):
  """Two linear layers with an activation between, which lies as `hidden`."""

  def __init__(self, sizes, activation, *, hidden, dtype, rngs):
    self.activation, self.hidden = activation, hidden
    self.into = layers.linear(sizes[0], sizes[1], dtype=dtype, rngs=rngs)
    self.out = layers.linear(sizes[1], sizes[2], dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """Applies both layers."""
    between = sharding.constrain(self.activation(self.into(x)), self.hidden)
    return self.out(between)


def parts_of(width: int, hidden: int) -> int:
  """Fewest parts of the hidden channels, each at most 3 widths.

  So a part takes no more than queries, keys and values did, which are gone by
  then.

  Args:
    width: Channels of a token.
    hidden: Hidden channels of one device.
  """
  return -(-hidden // (3 * width))


def by_parts(
  stack: MLP, layer: Array | int, x: Float[Array, "*B I"]
) -> Float32[Array, "*B O"]:
  """Applies one MLP of a stack, some hidden channels after the others.

  For passes without gradients. The same function as `MLP`, spec/wan.md A3:
  W₂ a(W₁ x) is the sum over parts p of W₂ₚ a(W₁ₚ x). Nothing of a part, not
  even its weights outside the stack, exists before the part in front of it has
  ended; left alone, a compiler copies the weights of a whole layer ahead. Each
  device takes parts of the channels that it has.

  Args:
    stack: MLPs of all layers, leaves `[layers, ...]`.
    layer: Which one.
    x: Input; the products have its dtype.

  Returns:
    The sum of all parts and the last bias, in float32.
  """
  assert stack.into.bias is not None
  assert stack.out.bias is not None
  weights = stack.into.kernel[...], stack.into.bias[...], stack.out.kernel[...]
  devices = sharding.devices_along("tensor")
  _, width, hidden = weights[0].shape
  own = hidden // devices
  parts = parts_of(width, own)
  done: list[Array] = []
  for part in range(parts):
    channels = range(part * own // parts, (part + 1) * own // parts)
    weights, x, done = jax.lax.optimization_barrier((weights, x, done))
    into, bias, out = (
      _cut(w, layer, axis, channels, devices).astype(x.dtype)
      for w, axis in zip(weights, (2, 1, 1), strict=True)
    )
    between = stack.activation(x @ into + bias)
    done.append(sharding.constrain(between, stack.hidden) @ out)
  bias = jax.lax.dynamic_index_in_dim(stack.out.bias[...], layer, 0, False)
  return sum((y.astype(jnp.float32) for y in done), start=bias)


def _cut(
  stack: Array, layer: Array | int, axis: int, channels: range, devices: int
) -> Array:
  """One layer's hidden channels, along `axis`, the same ones of each device.

  A single slice, which XLA can copy while it computes.
  """
  before, after = stack.shape[1:axis], stack.shape[axis + 1 :]
  cut = jax.lax.dynamic_slice(
    stack.reshape(-1, *before, devices, stack.shape[axis] // devices, *after),
    (layer, *(0 for _ in before), 0, channels.start, *(0 for _ in after)),
    (1, *before, devices, len(channels), *after),
  )
  return cut.reshape(*before, devices * len(channels), *after)
