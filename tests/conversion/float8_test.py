"""Weights that `convert` stores in float8."""

import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import tiny_release
from videomla_jax import convert
from videomla_jax.conversion.names import vae as vae_names
from videomla_jax.models import released
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

_FLOAT8 = "float8_e4m3fn"


def _run(source: pathlib.Path, output: pathlib.Path, **changes: Any) -> None:
  convert.convert(
    tiny_release.options(source=str(source), output=str(output), **changes)
  )


def _arrays(model: Any) -> dict[str, Any]:
  return tree_names.flat_dict(model_folder.model_arrays(model))


@pytest.fixture
def file(tmp_path: pathlib.Path, seed: int) -> pathlib.Path:
  tensors = tiny_release.draw(
    tiny_release.dit_table(),
    np.random.default_rng(seed),
    dtype=ml_dtypes.bfloat16,
  )
  safetensors_numpy.save_file(tensors, tmp_path / "given.safetensors")
  return tmp_path / "given.safetensors"


@pytest.mark.parametrize("to", ["same", "latent"])
def test_stored_weights_are_those_of_a_network_that_is_changed_later(
  file: pathlib.Path, tmp_path: pathlib.Path, to: str
) -> None:
  _run(file, tmp_path / "half", to=to)
  _run(file, tmp_path / "float8", to=to, dtype=_FLOAT8)
  stored = released.load(tmp_path / "float8", "dit")
  assert stored.config.products == "float8_per_token"
  half = released.load(tmp_path / "half", "dit")
  later = _arrays(released.with_products(half, "float8_per_token"))
  found = _arrays(stored)
  assert found.keys() == later.keys()
  for name, x in found.items():
    assert x.dtype == later[name].dtype
    if to == "same":
      np.testing.assert_array_equal(x, later[name])
  weights = [x.dtype for n, x in found.items() if n.endswith("/weight")]
  assert {x.name for x in weights} == {_FLOAT8}
  # What is read is written again, and read once more.
  released.save(tmp_path / "again", stored)
  for name, x in _arrays(released.load(tmp_path / "again", "dit")).items():
    assert x.dtype == found[name].dtype
    np.testing.assert_array_equal(x, found[name])


def test_only_the_network_of_a_release_is_in_float8(
  tmp_path: pathlib.Path, seed: int
) -> None:
  tiny_release.write_wan(tmp_path / "release", np.random.default_rng(seed))
  _run(tmp_path / "release", tmp_path / "model", dtype=_FLOAT8)
  dit = released.load(tmp_path / "model" / "dit", "dit")
  assert dit.config.products
  released.load(tmp_path / "model" / "vae", "vae")
  with pytest.raises(ValueError, match="is for the blocks of a DiT"):
    _run(tmp_path / "release", tmp_path / "vae", dtype=_FLOAT8, parts="vae")


def test_other_networks_are_refused(tmp_path: pathlib.Path, seed: int) -> None:
  table = vae_names.table_of(tiny_release.VAE)
  tensors = tiny_release.draw(table, np.random.default_rng(seed))
  safetensors_numpy.save_file(tensors, tmp_path / "vae.safetensors")
  with pytest.raises(ValueError, match=r"but there are only \['wan_vae'\]"):
    _run(tmp_path / "vae.safetensors", tmp_path / "model", dtype=_FLOAT8)
  assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("changes", [dict(export="original"), dict()])
def test_rounded_weights_are_not_converted_again(
  file: pathlib.Path, tmp_path: pathlib.Path, changes: dict[str, Any]
) -> None:
  _run(file, tmp_path / "float8", dtype=_FLOAT8)
  with pytest.raises(ValueError, match="holds weights in float8, which can"):
    _run(tmp_path / "float8", tmp_path / "other", **changes)


def test_numbers_that_are_not_finite_are_refused(
  file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  tensors = safetensors_numpy.load_file(file)
  name = "blocks.1.ffn.0.weight"
  tensors[name][3, 5] = np.inf
  safetensors_numpy.save_file(tensors, file)
  with pytest.raises(ValueError, match="'blocks/ffn/into/kernel' are not fin"):
    _run(file, tmp_path / "float8", dtype=_FLOAT8)
  assert not (tmp_path / "float8").exists()
