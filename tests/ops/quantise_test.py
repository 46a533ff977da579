"""Eight-bit storage and products: error bounds, exact zeros, bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from videomla_jax.ops import device
from videomla_jax.ops import quantise

TOKEN = "float8_per_token"

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


def _kernel(seed, *shape):
  # Output channels differ in size, as those of trained weights do.
  return jnp.swapaxes(_draw(seed, *shape), -1, -2)


def test_a_kernel_is_a_sixteenth_off_and_of_half_the_bytes(seed):
  kernel = _kernel(seed, 3, 20, 64)
  stored = quantise.quantise_kernel(kernel)
  assert stored.values.shape == (3, 20, 64)
  assert stored.values.dtype == jnp.float8_e4m3fn
  assert (stored.scale.shape, stored.scale.dtype) == ((3, 20, 1), jnp.float32)
  found = jnp.swapaxes(quantise.dequantise(stored, jnp.float32), -1, -2)
  error, scale = np.abs(found - kernel), jnp.swapaxes(stored.scale, -1, -2)
  assert (error <= np.abs(kernel) / 15.9 + 2**-10 * np.asarray(scale)).all()
  assert stored.values.nbytes * 2 == kernel.astype(jnp.bfloat16).nbytes


def test_the_size_of_an_output_channel_is_all_in_its_scale(seed):
  kernel = _kernel(seed, 20, 64)
  factors = 2.0 ** np.random.default_rng(seed).integers(-20, 20, 20)
  stored = quantise.quantise_kernel(kernel)
  other = quantise.quantise_kernel(kernel * factors)
  np.testing.assert_array_equal(other.values, stored.values)
  np.testing.assert_array_equal(other.scale[:, 0], stored.scale[:, 0] * factors)


def test_weights_that_float8_holds_come_back_exactly(seed):
  rng = np.random.default_rng(seed)
  every = np.arange(256, dtype=np.uint8).view(jnp.float8_e4m3fn)
  every = every[np.isfinite(every)].astype(np.float32)
  kernel = rng.choice(every, (64, 20))
  kernel[0] = 448.0  # so that the scale is 1
  kernel[:, 3] = 0.0
  kernel *= 2.0 ** rng.integers(-20, 20, 20)
  stored = quantise.quantise_kernel(jnp.asarray(kernel))
  found = quantise.dequantise(stored, jnp.float32)
  np.testing.assert_array_equal(np.asarray(found).T, kernel)


def test_one_power_of_two_serves_all_channels_of_a_layer(seed):
  kernel = (
    _kernel(seed, 3, 20, 64) * jnp.array([1.0, 1e-3, 50.0])[:, None, None]
  )
  stored = quantise.quantise_kernel(kernel, products="float8_constant")
  assert stored.values.dtype == jnp.float8_e4m3fn
  assert (stored.scale.shape, stored.scale.dtype) == ((3, 1, 1), jnp.float32)
  assert set(np.frexp(stored.scale)[0].flat) == {0.5}
  # The largest weight of a layer is near the end of the range, or below half.
  largest = np.abs(np.asarray(stored.values, np.float32)).max((1, 2))
  assert ((largest > 200) & (largest <= 448)).all()
  found = jnp.swapaxes(quantise.dequantise(stored, jnp.float32), -1, -2)
  error, scale = np.abs(found - kernel), np.asarray(stored.scale)
  assert (error <= np.abs(kernel) / 15.9 + 2**-10 * scale).all()
  nothing = quantise.quantise_kernel(kernel * 0, products="float8_constant")
  assert not np.asarray(nothing.values, np.float32).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_product_with_constant_scales_knows_no_layout(seed, dtype):
  x = jnp.clip(_draw(seed, 2, 3, 5, 64), -30, 30).astype(dtype)
  kernel = jnp.clip(_kernel(seed + 1, 20, 64) / 64, -30, 30)
  products = "float8_constant"
  stored = quantise.quantise_kernel(kernel, products=products)
  assert quantise.has_constant_scales(stored, products)
  assert not quantise.has_constant_scales(stored, TOKEN)
  by_token = quantise.product(x, stored, products=products)
  rows = quantise.product(x.reshape(-1, 64), stored, products=products)
  assert rows.dtype == x.dtype
  tolerances.assert_close(
    rows.reshape(by_token.shape),
    by_token,
    "float32" if dtype == "float32" else "bfloat16",
  )


@pytest.mark.parametrize("products", [*filter(None, quantise.PRODUCTS)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_product_is_that_of_the_rounded_numbers(seed, dtype, products):
  x = jnp.clip(_draw(seed, 2, 3, 5, 64), -30, 30).astype(dtype)
  x = x.at[1, 2, 3].set(0.0)
  # No sum of 64 products is beyond the largest number of float16, 65504.
  kernel = jnp.clip(_kernel(seed + 1, 20, 64) / 64, -30, 30)
  stored = quantise.quantise_kernel(kernel, products=products)
  found = quantise.product(x, stored, products=products)
  assert (found.shape, found.dtype) == ((2, 3, 5, 20), x.dtype)
  if products == "float8_constant":
    rounded = x.astype("float8_e4m3fn")
  else:
    axes = -1 if products == TOKEN else (1, 2, 3)
    rounded = quantise.quantise(x, dtype="float8_e4m3fn", axis=axes)
  expected = np.einsum(
    "...i,oi->...o",
    np.asarray(quantise.dequantise(rounded, jnp.float32), np.float64),
    np.asarray(quantise.dequantise(stored, jnp.float32), np.float64),
  )
  kind = "float32" if dtype == "float32" else "bfloat16"
  tolerances.assert_close(found, expected, kind)
  assert not np.asarray(found[1, 2, 3]).any()


@pytest.mark.parametrize("of", ["float8_constant", TOKEN])
def test_inputs_beyond_a_constant_range_are_its_end(seed, of):
  x = _draw(seed, 4, 64).at[1, 3].set(1e4).at[2, 5].set(-jnp.inf)
  kernel = quantise.quantise_kernel(_kernel(seed, 20, 64), products=of)
  found = quantise.product(x, kernel, products="float8_constant")
  ends = x.at[1, 3].set(448.0).at[2, 5].set(-448.0)
  np.testing.assert_array_equal(
    found, quantise.product(ends, kernel, products="float8_constant")
  )
  # What is not a number stays none, so that it is found.
  broken = quantise.product(
    x.at[0, 0].set(jnp.nan), kernel, products="float8_constant"
  )
  assert np.isnan(broken[0]).all() and np.isfinite(broken[1:]).all()


def test_tokens_do_not_know_of_each_other_nor_rows(seed):
  x = _draw(seed, 2, 6, 64)
  kernel = quantise.quantise_kernel(_kernel(seed, 20, 64))
  whole = quantise.product(x, kernel, products=TOKEN)
  np.testing.assert_array_equal(
    quantise.product(x.at[:, 3].set(1e4), kernel, products=TOKEN)[:, 4:],
    whole[:, 4:],
  )
  whole = quantise.product(x, kernel, products="float8_per_tensor")
  larger = 3 * jnp.abs(x).max()  # decides the scale of its row, whatever x is
  changed = quantise.product(
    x.at[0, 3].set(larger), kernel, products="float8_per_tensor"
  )
  np.testing.assert_array_equal(changed[1], whole[1])
  assert (changed[0, 4:] != whole[0, 4:]).any()


@pytest.mark.parametrize(
  ("kind", "capability", "float8"),
  [
    ("NVIDIA A100", 8.0, False),
    ("NVIDIA L4", 8.9, True),
    ("NVIDIA H100", 9.0, True),
    ("NVIDIA B200", 10.0, True),
    ("cpu", 0.0, False),
  ],
)
def test_float8_is_multiplied_where_there_are_units_for_it(
  monkeypatch, kind, capability, float8
):
  platform = "gpu" if capability else "cpu"
  here = device.Device(kind=kind, platform=platform, capability=capability)
  monkeypatch.setattr(device, "current", lambda: here)
  kernel = quantise.quantise_kernel(jnp.ones((32, 16)))
  x = jnp.ones((4, 32), jnp.bfloat16)
  # A trace is kept by its function, and this one must be new.
  jaxpr = jax.make_jaxpr(lambda x: quantise.product(x, kernel, products=TOKEN))(
    x
  )
  (dot,) = (e for e in jaxpr.eqns if e.primitive.name == "dot_general")
  wanted = jnp.float8_e4m3fn if float8 else jnp.bfloat16
  assert [v.aval.dtype for v in dot.invars] == [wanted, wanted]
  assert dot.outvars[0].aval.dtype == jnp.bfloat16
