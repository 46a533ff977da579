"""Tests of the text encoder's names."""

import math

import numpy as np
import pytest

from videomla_jax.conversion.names import umt5 as names
from videomla_jax.models import umt5
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names


def _tensors(seed: int, format_name: str) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  table = names.table_of(umt5.tiny_umt5())
  return {
    name: rng.standard_normal(table.tensors[original].shape, np.float32)
    for name, original in table.names(format_name).items()
  }


def test_table_counts_the_published_network() -> None:
  tensors = names.table_of(umt5.umt5_xxl()).tensors
  assert len(tensors) == 24 * 10 + 2
  parameters = sum(math.prod(t.shape) for t in tensors.values())
  assert parameters == 5_680_910_336


@pytest.mark.parametrize("make", [umt5.umt5_xxl, umt5.tiny_umt5])
def test_table_fills_every_parameter_once(make) -> None:
  config = make()
  leaves = model_folder.model_arrays(umt5.abstract(config))
  leaves = tree_names.flat_dict(leaves)
  assert names.table_of(config).our_shapes() == {
    path: leaf.shape for path, leaf in leaves.items()
  }


@pytest.mark.parametrize("format_name", ["original", "transformers"])
def test_writing_inverts_reading_bit_for_bit(format_name, seed: int) -> None:
  tensors = _tensors(seed, format_name)
  table = names.table_of(umt5.tiny_umt5())
  written = table.write(table.read(tensors), format_name=format_name)
  assert written.keys() == tensors.keys()
  for name, x in written.items():
    np.testing.assert_array_equal(x, tensors[name])


def test_the_tied_embedding_may_be_there_twice(seed: int) -> None:
  tensors = _tensors(seed, "transformers")
  both = {**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"]}
  table = names.table_of(umt5.tiny_umt5())
  a, b = table.read(tensors), table.read(both)
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_array_equal(a[path], b[path])
