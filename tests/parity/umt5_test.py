"""Our UMT5 encoder against the original's activations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests import tolerances
from tests.parity import goldens
from videomla_jax.conversion.names import umt5 as names
from videomla_jax.models import umt5
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

_NAME = "umt5"


@functools.cache
def _model() -> umt5.Umt5Encoder:
  sizes = goldens.config(_NAME)
  config = umt5.Umt5Config(
    vocabulary=sizes["vocab"],
    width=sizes["dim"],
    num_heads=sizes["num_heads"],
    head_dim=sizes["dim_attn"] // sizes["num_heads"],
    ffn_width=sizes["dim_ffn"],
    num_layers=sizes["num_layers"],
    num_buckets=sizes["num_buckets"],
    max_distance=sizes["max_dist"],
    dtype="float32",
    param_dtype="float32",
  )
  arrays = names.table_of(config).read(goldens.parameters(_NAME))
  model = umt5.abstract(config)
  model_folder.update_model(model, tree_names.nested_dict(arrays))
  return model


def _golden(name: str) -> np.ndarray:
  return goldens.load(_NAME)[name]


def test_buckets_equal_the_originals_exactly() -> None:
  rows = umt5.relative_buckets(
    _golden("bucket/distance"), num_buckets=32, max_distance=128
  )
  np.testing.assert_array_equal(rows, _golden("bucket/index"))


def test_every_layer_equals_the_originals() -> None:
  model, valid = _model(), jnp.asarray(_golden("in/mask")) > 0
  x = model.tokens[...][_golden("in/ids")]
  first, second = (
    jax.tree.map(lambda leaf, n=n: leaf[n], model.blocks) for n in range(2)
  )
  length = x.shape[1]
  bias = first.attention.bias(length)
  tolerances.assert_close(bias, _golden("mid/block0_bias"), "golden")
  out = first.attention(first.attention_norm(x), valid)
  tolerances.assert_close(out, _golden("mid/block0_attn_out"), "golden")
  y = x + out
  ffn = first.ffn(first.ffn_norm(y))
  tolerances.assert_close(ffn, _golden("mid/block0_ffn_out"), "golden")
  tolerances.assert_close(y + ffn, _golden("mid/block0_out"), "golden")
  last = second(y + ffn, valid)
  tolerances.assert_close(last, _golden("mid/block1_out"), "golden")


def test_hidden_states_and_zeroed_ones_equal_the_originals() -> None:
  model, ids = _model(), jnp.asarray(_golden("in/ids"))
  valid = jnp.asarray(_golden("in/mask")) > 0
  hidden = jax.jit(lambda m, *x: m(*x))(model, ids, valid)
  tolerances.assert_close(hidden, _golden("out/hidden"), "golden")
  lengths = jnp.asarray(_golden("in/lens"))
  zeroed = jax.jit(lambda m, *x: m.embed(*x))(model, ids, lengths)
  tolerances.assert_close(zeroed, _golden("out/zeroed"), "golden")
  assert not np.asarray(zeroed)[~np.asarray(valid)].any()
