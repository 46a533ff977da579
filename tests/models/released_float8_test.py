"""Networks whose blocks multiply in float8: what changes, and by how much."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import float8_errors
from tests import tiny_model
from tests import tiny_rollout
from tests import tolerances
from videomla_jax.models import released
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names


def _arrays(model):
  return tree_names.flat_dict(model_folder.model_arrays(model))


@pytest.mark.parametrize("products", ["float8_per_token", "float8_constant"])
@pytest.mark.parametrize("kind", ["latent", "dense"])
def test_projections_of_blocks_are_float8_and_nothing_else(
  seed, kind, products
):
  model = tiny_model.build(kind, np.random.default_rng(seed))
  before = _arrays(model)
  changed = released.with_products(model, products)
  assert changed.config.products == products
  assert not model.config.products
  assert _arrays(model).keys() == before.keys()
  after = _arrays(changed)
  for name in before.keys() & after.keys():
    np.testing.assert_array_equal(after[name], before[name])
  gone = before.keys() - after.keys()
  assert after.keys() - before.keys() == {
    name.replace("/kernel", part) for name in gone for part in ("/weight", "/scale")
  }  # fmt: skip
  kept = {n for n in after if n.startswith("blocks") and n.endswith("/kernel")}
  ups = {f"blocks/self_attention/{n}/kernel" for n in ("w_uk", "w_uv")}
  assert kept == (ups if kind == "latent" else set())
  assert all(n.startswith("blocks/") for n in gone)


@pytest.mark.parametrize("products", ["float8_per_token", "float8_constant"])
@pytest.mark.parametrize("kind", ["latent", "dense"])
def test_a_network_made_in_float8_has_what_one_has_that_became_it(
  kind, products
):
  config = tiny_model.config(kind)
  became = jax.eval_shape(
    lambda m: released.with_products(m, products), tiny_model.abstract(config)
  )
  config = dataclasses.replace(config, products=products)
  made = tiny_model.abstract(config)
  described = lambda m: {n: (x.shape, x.dtype) for n, x in _arrays(m).items()}
  assert described(made) == described(became)


@pytest.mark.parametrize("products", ["float8_per_tensor", "float8_constant"])
def test_all_ways_to_round_inputs_read_the_same_weights(seed, products):
  model = tiny_model.build("latent", np.random.default_rng(seed))
  once = released.with_products(model, "float8_per_token")
  other = released.with_products(once, products)
  assert other.config.products == products
  assert other.blocks.ffn.into.products == products
  assert once.blocks.ffn.into.products == "float8_per_token"
  for name, x in _arrays(once).items():
    np.testing.assert_array_equal(_arrays(other)[name], x)
  assert released.with_products(model, "") is model


def test_unknown_products_are_refused():
  with pytest.raises(
    ValueError, match="products='int4' is unknown; use one of"
  ):
    tiny_model.config("latent", products="int4")


@pytest.mark.parametrize(
  ("kind", "products"),
  [
    ("latent", "float8_per_token"),
    ("dense", "float8_per_tensor"),
    ("latent", "float8_constant"),
  ],
)
def test_a_rollout_of_random_weights_is_close(seed, kind, products):
  model, text, keys, sampler = tiny_rollout.setup(seed, kind=kind)
  expected = tiny_rollout.generate(model, text, keys, sampler, 6)
  other = released.with_products(model, products)
  found = tiny_rollout.generate(other, text, keys, sampler, 6)
  assert (np.asarray(found) != np.asarray(expected)).any()
  tolerances.assert_close(found, expected, "float8_products")


@pytest.mark.parametrize("products", ["float8_per_token", "float8_constant"])
def test_layers_apart_multiply_in_float8(seed, products):
  model, text, keys, sampler = tiny_rollout.setup(seed, spare_memory=False)
  both = (
    released.with_products(model, products),
    wan.with_layers_apart(released.with_products(model, products)),
    released.with_products(wan.with_layers_apart(model), products),
  )
  expected, *found = (
    tiny_rollout.generate(x, text, keys, sampler, 6) for x in both
  )
  for video in found:
    tolerances.assert_close(video, expected, "float8_products")
  np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("products", ["float8_per_token", "float8_constant"])
def test_trained_weights_lose_a_few_per_cent_a_layer(products):
  case = float8_errors.shipped("student")
  found = float8_errors.measure(
    case, num_frames=3, seed=0, variants=(products,)
  )
  errors = found[products]
  print(errors)
  assert len(errors.layers) == case.model.config.num_layers
  bound = tolerances.TOLERANCES["float8_products"].bound
  assert 1e-3 < max(errors.layers) <= bound
  assert errors.first <= 3 * bound


def test_memory_of_the_1_3b_network_halves():
  half = tiny_model.abstract(wan_config.wan_1p3b())
  half = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, jnp.bfloat16 if len(x.shape) > 2 else x.dtype
    ),
    half,
  )
  count = lambda m: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(m))
  stored = jax.eval_shape(
    lambda m: released.with_products(m, "float8_per_token"), half
  )
  assert count(stored) / count(half) < 0.54
  assert count(stored.blocks) / count(half.blocks) < 0.52
