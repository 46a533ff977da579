"""Eight-bit storage: the error bound, exact zeros, bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomla_jax.ops import quantise

DTYPES = sorted(quantise.LARGEST)


def _draw(seed, *shape):
  rng = np.random.default_rng(seed)
  sizes = np.exp(rng.normal(0, 3, (*shape[:-1], 1)))  # tokens differ in size
  return jnp.asarray(rng.standard_normal(shape) * sizes, jnp.float32)


def test_int8_error_is_half_a_step_of_the_token(seed):
  x = _draw(seed, 50, 32)
  q = quantise.quantise(x, dtype="int8")
  error = np.abs(np.asarray(quantise.dequantise(q, jnp.float32) - x))
  # The scale may be rounded down by 2^-9, which clips at most half a step.
  assert (error <= 0.5001 * np.asarray(q.scale, np.float32)).all()


def test_float8_error_is_a_sixteenth_of_each_number(seed):
  x = _draw(seed, 50, 32)
  q = quantise.quantise(x, dtype="float8_e4m3fn")
  error = np.abs(np.asarray(quantise.dequantise(q, jnp.float32) - x))
  # 3 bits of mantissa, and steps of 2^-9 scales below the normal numbers.
  scale = np.asarray(q.scale, np.float32)
  assert (error <= np.abs(x) / 15.9 + 2**-10 * scale).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_token_has_the_scale_of_its_own_largest_number(seed, dtype):
  x = _draw(seed, 50, 32)
  scale = quantise.quantise(x, dtype=dtype).scale.astype(jnp.float32)
  expected = jnp.abs(x).max(-1, keepdims=True) / quantise.LARGEST[dtype]
  np.testing.assert_allclose(scale, expected, rtol=2**-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zeros_and_a_second_time_changes_nothing(seed, dtype):
  x = _draw(seed, 6, 16).at[2].set(0.0)
  once = quantise.dequantise(quantise.quantise(x, dtype=dtype), jnp.float32)
  assert not np.asarray(once[2]).any()
  again = quantise.dequantise(quantise.quantise(once, dtype=dtype), jnp.float32)
  # The largest number of a token becomes q_max exactly, so scales repeat.
  np.testing.assert_array_equal(again, once)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_costs_one_byte_per_scalar_and_two_for_its_scale(dtype):
  shape = quantise.shape_of(jax.ShapeDtypeStruct((7, 192), jnp.bfloat16), dtype)
  leaves = jax.tree.leaves(shape)
  assert sum(x.size * x.dtype.itemsize for x in leaves) == 7 * (192 + 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_trees_keep_their_structure(seed, dtype):
  x = _draw(seed, 4, 8)
  stored = {"a": quantise.quantise(x, dtype=dtype), "b": x.astype(jnp.bfloat16)}
  new = quantise.store_like({"a": 2 * x, "b": 2 * x}, stored)
  assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, stored)
  assert jax.tree.map(lambda y: y.dtype, new) == jax.tree.map(
    lambda y: y.dtype, stored
  )
