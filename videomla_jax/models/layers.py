"""Norms, projections and the time embedding that the DiT is made of."""

from collections.abc import Callable
import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32
import numpy as np

from videomla_jax.ops import quantise
from videomla_jax.ops import rope

EPSILON = 1e-6  # every norm of Wan


def linear(
  features_in: int,
  features_out: int,
  *,
  dtype: DTypeLike,
  rngs: nnx.Rngs,
  bias: bool = True,
) -> nnx.Linear:
  """Makes a projection as Wan initialises it, with Xavier-uniform weights.

  Args:
    features_in: Input channels.
    features_out: Output channels.
    dtype: Dtype of the product; master weights are float32.
    rngs: Random keys.
    bias: Whether a bias is added.
  """
  return nnx.Linear(
    features_in,
    features_out,
    use_bias=bias,
    dtype=dtype,
    param_dtype=jnp.float32,
    kernel_init=nnx.initializers.xavier_uniform(),
    rngs=rngs,
  )


class Float8Linear(nnx.Module):
  """A projection whose products are float8, made from an ordinary one.

  It is for networks that are not trained: rounding has no gradient.

  Attributes:
    weight: Weights in float8_e4m3fn, `[*layers, O, I]`: a kernel transposed.
    scale: Scale of each output channel, float32 `[*layers, O, 1]`, or of all,
      `[*layers, 1, 1]`.
    bias: Bias `[*layers, O]`, or None.
    dtype: Dtype of inputs and outputs.
    products: How inputs are rounded, a name in `quantise.PRODUCTS`.
  """

  def __init__(self, linear: nnx.Linear, *, products: str) -> None:
    """Rounds the weights of a projection.

    Args:
      linear: The projection, perhaps of all layers.
      products: How inputs are rounded, a name in `quantise.PRODUCTS`.
    """
    stored = _quantise_kernel(linear.kernel[...], products=products)
    self.weight = nnx.Param(stored.values)
    self.scale = nnx.Param(stored.scale)
    self.bias = linear.bias
    self.dtype, self.products = linear.dtype, products

  def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """Projects the last axis of an array."""
    x = x.astype(self.dtype)
    y = product(self, weights(self), x)
    return y if self.bias is None else y + self.bias[...].astype(y.dtype)


Linear = nnx.Linear | Float8Linear
# One program, or the division would be written in float32: 1.6 GB at 1.3B.
_quantise_kernel = jax.jit(quantise.quantise_kernel, static_argnames="products")


def weights(linear: Linear) -> Array | quantise.Quantised:
  """Returns the weights of a projection as they are stored."""
  if isinstance(linear, Float8Linear):
    return quantise.Quantised(linear.weight[...], linear.scale[...])
  return linear.kernel[...]


def product(
  linear: Linear, kernel: Array | quantise.Quantised, x: Float[Array, "*B I"]
) -> Float[Array, "*B O"]:
  """Multiplies by weights as a projection does, without its bias.

  Args:
    linear: Says how inputs are rounded.
    kernel: Weights of `weights(linear)`, or a part of them.
    x: Input; the product has its dtype.
  """
  if isinstance(kernel, quantise.Quantised):
    assert isinstance(linear, Float8Linear)
    return quantise.product(x, kernel, products=linear.products)
  return x @ kernel.astype(x.dtype)


def rows_of(
  projection: Linear, x: Float[Array, "*B I"]
) -> tuple[Float[Array, "*C I"], Callable[[Array], Array]]:
  """Lays tokens out as the input of products behind which cuBLAS rounds.

  XLA makes one call of a product, its bias, a GELU and the rounding to float8,
  if these are matrices with a multiple of 16 rows. Other projections get their
  input as it is.

  Args:
    projection: The first product.
    x: Tokens.

  Returns:
    The rows, and what gives a result for them the axes of the tokens.
  """
  if not isinstance(projection, Float8Linear) or not (
    quantise.has_constant_scales(weights(projection), projection.products)
  ):
    return x, lambda y: y
  count = math.prod(x.shape[:-1])
  rows = jnp.pad(x.reshape(count, -1), ((0, -count % 16), (0, 0)))
  return rows, lambda y: y[:count].reshape(*x.shape[:-1], -1)


def to_residual(
  projection: Linear, x: Float[Array, "*B I"]
) -> Float32[Array, "*B O"]:
  """Applies a projection whose output is added to the float32 residual tokens.

  The bias is added in float32, in the pass over memory that adds the rest. In
  the product it would be rounded once more, and XLA would copy the weights of
  a layer out of their stack: it reads them in place for plain products only.

  Args:
    projection: A projection with a bias.
    x: Input, in the dtype of the product.
  """
  assert projection.bias is not None
  out = product(projection, weights(projection), x)
  return out.astype(jnp.float32) + projection.bias[...]


def use_float8(
  module: nnx.Module, products: str, *, but: tuple[str, ...] = ()
) -> None:
  """Replaces the projections inside of a module, in place.

  Args:
    module: Whose projections are replaced, at any depth.
    products: A name in `quantise.PRODUCTS`, not empty. Projections that are
      float8 already only change how their inputs are rounded.
    but: Names of projections that stay as they are.
  """
  for _, parent in [*nnx.iter_modules(module)]:
    for name, child in [*vars(parent).items()]:
      if isinstance(child, Float8Linear):
        child.products = products
      elif isinstance(child, nnx.Linear) and name not in but:
        setattr(parent, name, Float8Linear(child, products=products))


class RMSNorm(nnx.Module):
  """Divides by the root mean square and multiplies by a learned gain.

  The division is in float32, the gain in the dtype of the input, as in Wan.
  """

  def __init__(self, features: int) -> None:
    self.gain = nnx.Param(jnp.ones((features,), jnp.float32))

  def __call__(self, x: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
    """Normalises the last axis of an array."""
    x32 = x.astype(jnp.float32)
    # Wan casts before it multiplies by the gain; the other order rounds once
    # less and gives other bits.
    square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
    normed = (x32 * jax.lax.rsqrt(square + EPSILON)).astype(x.dtype)
    return normed * self.gain.astype(x.dtype)


def layer_norm(x: Float32[Array, "*B E"]) -> Float32[Array, "*B E"]:
  """Normalises the last axis to mean 0 and variance 1, in float32."""
  # The mean of squares less the square of the mean needs one pass only, but the
  # difference loses digits where the mean is large.
  centred = x - x.mean(-1, keepdims=True)
  variance = jnp.mean(centred * centred, -1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + EPSILON)


class AffineLayerNorm(nnx.Module):
  """LayerNorm with gain and bias, in float32: Wan's `norm3`."""

  def __init__(self, features: int) -> None:
    self.gain = nnx.Param(jnp.ones((features,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

  def __call__(self, x: Float32[Array, "*B E"]) -> Float32[Array, "*B E"]:
    """Normalises the last axis of an array."""
    return layer_norm(x) * self.gain[...] + self.bias[...]


def sinusoid(
  timestep: Float32[Array, "*B"], *, dim: int
) -> Float32[Array, "*B {dim}"]:
  """Embeds timesteps as cosines, then sines, of Wan's frequencies.

  Args:
    timestep: Timesteps, 0 (clean) to 1000 (noise).
    dim: Channels, an even number.
  """
  half = dim // 2
  frequency = rope.THETA ** (-np.arange(half) / half)
  return jnp.concatenate(rope.cos_sin(timestep, frequency), axis=-1)
