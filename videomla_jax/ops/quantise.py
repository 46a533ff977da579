"""Eight-bit storage with one scale per token, and products of eight bits.

  s = max|x| / q_max,   stored = round(x / s),   x ≈ s stored

q_max is 127 for int8 and 448 for float8_e4m3fn. A scale is rounded to its own
dtype before x is divided by it, so that this rounding adds no error.

In a product y = x W both factors are float8_e4m3fn. Tokens t have scales sₜ,
and output channels o have scales wₒ, so that both leave the sum:

  yₜₒ = sₜ wₒ Σᵢ (xₜᵢ / sₜ) (Wᵢₒ / wₒ)

The constant sₜ = 1 will do as well: numbers of this format have an exponent, so
a scale moves the range in which they keep three bits and changes nothing inside
of it. Inputs from 2⁻⁶ to 448 are then rounded as they are, without a pass that
looks for the largest one; smaller ones lose bits, and larger ones become 448.
For the same reason one power of two w serves all output channels: weights above
w 2⁻⁶, at most 2⁻¹³ of the largest, keep their bits. A product then has constant
factors only, and cuBLAS adds the bias, applies the activation and rounds to
float8 itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from videomla_jax.ops import device

LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}
SCALE_DTYPE = jnp.bfloat16
SCALE_BYTES = jnp.dtype(SCALE_DTYPE).itemsize

FLOAT8 = "float8_e4m3fn"
# What the inputs of a product share a scale with. Without a name, products have
# the dtype of the network.
PRODUCTS = ("", "float8_per_token", "float8_per_tensor", "float8_constant")
# CUDA compute capability of the first matrix units that take eight bits.
FLOAT8_CAPABILITY = 8.9


class Quantised(NamedTuple):
  """An array in eight bits.

  Attributes:
    values: The rounded quotients, int8 or float8_e4m3fn.
    scale: One scale per token, or per output channel of a kernel; axes that
      share one have size 1.
  """

  values: Array
  scale: Float[Array, "..."]

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the array that is stored."""
    return self.values.shape


def is_eight_bit(dtype: DTypeLike | None) -> bool:
  """Tells whether a dtype needs scales; None does not."""
  return dtype is not None and jnp.dtype(dtype).name in LARGEST


def quantise(
  x: Float[Array, "*tokens d"],
  *,
  dtype: DTypeLike,
  axis: int | tuple[int, ...] = -1,
  scale_dtype: DTypeLike = SCALE_DTYPE,
) -> Quantised:
  """Stores an array in eight bits; zeros stay zeros.

  Args:
    x: Finite numbers, a row for each token.
    dtype: Key of `LARGEST`.
    axis: Axes whose numbers share a scale.
    scale_dtype: Dtype of the scales.

  Returns:
    The stored values and their scales.
  """
  largest = LARGEST[jnp.dtype(dtype).name]
  x = x.astype(jnp.float32)
  largest_here = jnp.abs(x).max(axis, keepdims=True)
  scale = (largest_here / largest).astype(scale_dtype)
  # A token of zeros has the scale 0, by which nothing may be divided.
  divisor = jnp.where(scale > 0, scale, 1).astype(jnp.float32)
  # A scale that was rounded down lets the largest quotient leave the range.
  values = jnp.clip(x / divisor, -largest, largest)
  if jnp.issubdtype(dtype, jnp.integer):
    values = jnp.round(values)
  return Quantised(values.astype(dtype), scale)


def dequantise(x: Array | Quantised, dtype: DTypeLike) -> Array:
  """Returns what was stored, in `dtype`.

  Args:
    x: A stored array; one without scales is only cast.
    dtype: Type of the result.
  """
  if not isinstance(x, Quantised):
    return x.astype(dtype)
  values = x.values.astype(jnp.float32) * x.scale.astype(jnp.float32)
  return values.astype(dtype)


def shape_of(
  x: jax.ShapeDtypeStruct, dtype: DTypeLike
) -> jax.ShapeDtypeStruct | Quantised:
  """Returns the shapes of an array once it is stored in `dtype`."""
  if is_eight_bit(dtype):
    return jax.eval_shape(lambda y: quantise(y, dtype=dtype), x)
  return jax.ShapeDtypeStruct(x.shape, dtype)


def store_like(new: PyTree, stored: PyTree) -> PyTree:
  """Casts or quantises the leaves of `new` to the types in `stored`.

  Args:
    new: Arrays.
    stored: Arrays of the same tree, some of them perhaps in eight bits.
  """

  def convert(old: Array | Quantised, x: Array) -> Array | Quantised:
    if isinstance(old, Quantised):
      return quantise(x, dtype=old.values.dtype)
    return x.astype(old.dtype)

  return jax.tree.map(
    convert, stored, new, is_leaf=lambda x: isinstance(x, Quantised)
  )


def quantise_kernel(
  kernel: Float[Array, "*layers I O"], *, products: str = "float8_per_token"
) -> Quantised:
  """Stores kernels in float8, with float32 scales.

  Args:
    kernel: Finite numbers.
    products: A name in `PRODUCTS`. Kernels of "float8_constant" have one scale,
      a power of two, and others one for each output channel.

  Returns:
    The stored values `[*layers, O, I]`, and scales `[*layers, O, 1]` or
    `[*layers, 1, 1]`.
  """
  # The units of Hopper read both factors along the axis that is summed over.
  # Stored otherwise, XLA would hold a transposed copy of all layers.
  transposed = jnp.swapaxes(kernel, -1, -2)
  if products != "float8_constant":
    return quantise(transposed, dtype=FLOAT8, scale_dtype=jnp.float32)
  wide = transposed.astype(jnp.float32)
  largest = jnp.abs(wide).max((-2, -1), keepdims=True)
  _, exponent = jnp.frexp(largest / LARGEST[FLOAT8])  # largest <= 448 * scale
  scale = jnp.ldexp(jnp.ones_like(largest), exponent)
  return Quantised((wide / scale).astype(FLOAT8), scale)


def has_float8_units(where: device.Device) -> bool:
  """Tells whether a device multiplies float8 without widening it first."""
  return where.platform == "gpu" and where.capability >= FLOAT8_CAPABILITY


def product(
  x: Float[Array, "*B I"], kernel: Quantised, *, products: str
) -> Float[Array, "*B O"]:
  """Multiplies by a stored kernel; inputs are rounded to float8 as they come.

  Sums are float32, or what the matrix units of a GPU have for float8. Where a
  device has no such units, the same rounded numbers are multiplied in the dtype
  of `x`, which holds all of them.

  Args:
    x: Inputs; the first axis counts rows that do not know of each other.
    kernel: What `quantise_kernel` returned, of one layer.
    products: Whether each token has a scale of its own, all tokens of a row
      share one, or it is constant: a name in `PRODUCTS`.
  """
  constant = has_constant_scales(kernel, products)
  if constant and x.ndim == 2 and x.dtype != jnp.float16:
    return _matrix_product(x, kernel)
  stored = _rounded_inputs(x, products)
  left, right = stored.values, kernel.values
  if not has_float8_units(device.current()):
    left, right = left.astype(x.dtype), right.astype(x.dtype)
  # A sum that is written as bfloat16 has half the bytes; float16 would overflow
  # before it is scaled.
  half = x.dtype == jnp.bfloat16
  y = jax.lax.dot_general(
    left,
    right,
    (((x.ndim - 1,), (1,)), ((), ())),
    preferred_element_type=jnp.bfloat16 if half else jnp.float32,
  ).astype(jnp.float32)
  return (y * stored.scale.astype(jnp.float32) * kernel.scale[:, 0]).astype(
    x.dtype
  )


def has_constant_scales(kernel: Quantised, products: str) -> bool:
  """Tells whether no scale of a product differs between tokens or channels.

  Args:
    kernel: What `quantise_kernel` returned, perhaps of all layers.
    products: A name in `PRODUCTS`.
  """
  shared = kernel.scale.shape[-2] < kernel.values.shape[-2]
  return shared and products == "float8_constant"


def _matrix_product(
  x: Float[Array, "R I"], kernel: Quantised
) -> Float[Array, "R O"]:
  """Multiplies matrices as XLA's pattern for cuBLAS asks for.

  The pattern is a product of widened float8 numbers that are scaled before it;
  it takes a bias, a GELU and the rounding of its result along. The scale is a
  power of two, so the order makes no difference. Products whose inputs have
  more axes share them with others, which XLA makes one product unless weights
  are scaled before.
  """
  largest = LARGEST[FLOAT8]
  # cuBLAS rounds its output if that is divided by a number, even by 1; one that
  # XLA knew would be gone before.
  one = jax.lax.optimization_barrier(jnp.ones((), x.dtype))
  left = jnp.clip(x / one, -largest, largest).astype(FLOAT8).astype(x.dtype)
  right = kernel.values.astype(x.dtype) * kernel.scale[0, 0].astype(x.dtype)
  return jax.lax.dot_general(
    left,
    right,
    (((x.ndim - 1,), (1,)), ((), ())),
    preferred_element_type=x.dtype,
  )


def _rounded_inputs(x: Float[Array, "*B I"], products: str) -> Quantised:
  """Rounds the inputs of a product."""
  if products == "float8_constant":
    largest = LARGEST[FLOAT8]
    # Beyond its range the format has nothing but NaN.
    values = jnp.clip(x, -largest, largest).astype(FLOAT8)
    return Quantised(values, jnp.ones((1,) * x.ndim, SCALE_DTYPE))
  per_token = products == "float8_per_token" or x.ndim < 2
  axes = -1 if per_token else tuple(range(1, x.ndim))
  return quantise(x, dtype=FLOAT8, axis=axes)
