"""The feed-forward by parts is the feed-forward."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.models import feed_forward
from videomla_jax.models import layers
from videomla_jax.ops import quantise

LAYERS, WIDTH = 3, 8


def _stack(rng, hidden):
  sizes = (WIDTH, hidden, WIDTH)
  stack = nnx.vmap(
    lambda r: feed_forward.MLP(
      sizes, feed_forward.gelu, hidden="hidden", dtype=jnp.float32, rngs=r
    )
  )
  abstract = nnx.eval_shape(lambda: stack(nnx.Rngs(0).fork(split=LAYERS)))
  return tiny_model.fill(abstract, rng)


@pytest.mark.parametrize(("hidden", "parts"), [(24, 1), (25, 2), (48, 2)])
def test_parts_add_up_to_the_layer(seed, hidden, parts):
  assert feed_forward.num_slices(WIDTH, hidden) == parts
  rng = np.random.default_rng(seed)
  stack = _stack(rng, hidden)
  x = tiny_model.normal(rng, 2, 1, 3, 5, WIDTH)
  by_parts = jax.jit(feed_forward.by_slices)
  for layer in range(LAYERS):
    whole = jax.tree.map(lambda leaf, i=layer: leaf[i], stack)
    tolerances.assert_close(by_parts(stack, layer, x), whole(x))


@pytest.mark.parametrize("products", quantise.PRODUCTS[1:])
def test_parts_in_float8_add_up_as_well(seed, products):
  rng = np.random.default_rng(seed)
  exact = _stack(rng, 50)
  stack = nnx.merge(*nnx.split(exact))
  layers.use_float8(stack, products)
  x = tiny_model.normal(rng, 2, 1, 3, 5, WIDTH)
  for layer in range(LAYERS):
    found = jax.jit(feed_forward.by_slices)(stack, layer, x)
    # Each part of a token has a scale of its own, so the sums are not equal.
    whole = jax.tree.map(lambda leaf, i=layer: leaf[i], stack)(x)
    tolerances.assert_close(found, whole, "float8_products")
    expected = jax.tree.map(lambda leaf, i=layer: leaf[i], exact)(x)
    tolerances.assert_close(found, expected, "float8_products")


@pytest.mark.parametrize("tokens", [1, 5, 16])
def test_rows_for_constant_scales_change_nothing(seed, tokens):
  rng = np.random.default_rng(seed)
  stack = _stack(rng, 50)
  layers.use_float8(stack, "float8_constant")
  layer = jax.tree.map(lambda leaf: leaf[1], stack)
  x = tiny_model.normal(rng, 2, 1, 3, tokens, WIDTH)
  rows, by_token = layers.rows_of(layer.into, x)
  assert rows.shape == (-(-6 * tokens // 16) * 16, WIDTH)
  np.testing.assert_array_equal(by_token(rows), x)
  expected = layer.out(feed_forward.gelu(layer.into(x)))
  # A rounding to float8 may fall to the other side.
  tolerances.assert_close(layer(x), expected, "float8_products")
  assert layer.to_residual(x).shape == x.shape


def test_other_products_get_tokens_as_they_are(seed):
  rng = np.random.default_rng(seed)
  stack = _stack(rng, 50)
  x = tiny_model.normal(rng, 2, 1, 3, 5, WIDTH)
  for products in ("", "float8_per_token"):
    if products:
      layers.use_float8(stack, products)
    assert layers.rows_of(stack.into, x)[0] is x


@pytest.mark.parametrize(
  ("width", "hidden", "parts"),
  [(1536, 8960, 2), (1536, 8960 // 2, 1), (5120, 13824, 1), (128, 256, 1)],
)
def test_no_part_is_wider_than_queries_keys_and_values(width, hidden, parts):
  assert feed_forward.num_slices(width, hidden) == parts
  assert -(-hidden // parts) <= 3 * width
