"""Eight-bit storage with one scale per token.

  s = max|x| / q_max,   stored = round(x / s),   x ≈ s stored

q_max is 127 for int8 and 448 for float8_e4m3fn. The scale is rounded to
bfloat16 before x is divided by it, so that this rounding adds no error.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, BFloat16, Float, PyTree

LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}
SCALE_DTYPE = jnp.bfloat16
SCALE_BYTES = jnp.dtype(SCALE_DTYPE).itemsize


class Quantised(NamedTuple):
  """An array in eight bits.

  Attributes:
    values: The rounded quotients, int8 or float8_e4m3fn.
    scale: One scale per token.
  """

  values: Array
  scale: BFloat16[Array, "*tokens 1"]

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the array that is stored."""
    return self.values.shape


def is_eight_bit(dtype: DTypeLike | None) -> bool:
  """Tells whether a dtype needs scales; None does not."""
  return dtype is not None and jnp.dtype(dtype).name in LARGEST


def quantise(x: Float[Array, "*tokens d"], *, dtype: DTypeLike) -> Quantised:
  """Stores an array in eight bits; zeros stay zeros.

  Args:
    x: Finite numbers, a row for each token.
    dtype: Key of `LARGEST`.

  Returns:
    The stored values and their scales.
  """
  largest = LARGEST[jnp.dtype(dtype).name]
  x = x.astype(jnp.float32)
  scale = (jnp.abs(x).max(-1, keepdims=True) / largest).astype(SCALE_DTYPE)
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
