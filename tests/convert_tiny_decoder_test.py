"""Tests of the tiny decoder from its published files to its folder."""

import pathlib
from typing import Any

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import tiny_release
from videomla_jax import convert
from videomla_jax.conversion.names import tiny_decoder as names
from videomla_jax.models import released
from videomla_jax.models import tiny_decoder
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

_SIZES = tiny_decoder.tiny()
_TABLE = names.table_of(_SIZES)


def _run(source: pathlib.Path, output: pathlib.Path, **changes: Any) -> None:
  convert.convert(
    tiny_release.options(source=str(source), output=str(output), **changes)
  )


def _tensors(seed: int, **options: Any) -> tiny_release.Arrays:
  """Random tensors of a published file, those of its encoder included."""
  rng = np.random.default_rng(seed)
  encoder = {name: np.ones((2, 3), np.float32) for name in _TABLE.unused}
  return encoder | tiny_release.draw(_TABLE, rng, **options)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_published_file_becomes_a_folder_and_comes_back(
  kind: str, tmp_path: pathlib.Path, seed: int, capsys
) -> None:
  given = _tensors(seed)
  source = tmp_path / f"taew2_1.{kind}"
  if kind == "pth":
    tiny_release.write_pth(source, given)
  else:
    safetensors_numpy.save_file(given, source)
  _run(source, tmp_path / "tiny_decoder")
  assert "64 tensors of its encoder are left out" in capsys.readouterr().out
  model = released.load(tmp_path / "tiny_decoder", "tiny_decoder")
  assert model.config == _SIZES
  arrays = tree_names.flat_dict(model_folder.model_arrays(model))
  for path, value in _TABLE.read(given).items():
    np.testing.assert_array_equal(arrays[path], value)
  with pytest.raises(ValueError, match="is a decoder, which several families"):
    released.family_at(tmp_path / "tiny_decoder")
  _run(tmp_path / "tiny_decoder", tmp_path / "back", export="original")
  (file,) = (tmp_path / "back").glob("*.safetensors")
  back = safetensors_numpy.load_file(file)
  assert back.keys() == given.keys() - _TABLE.unused
  for name, value in back.items():
    np.testing.assert_array_equal(value, given[name])


def test_half_precision_is_stored_without_loss(tmp_path, seed: int) -> None:
  given = _tensors(seed, dtype=np.float16)
  safetensors_numpy.save_file(given, tmp_path / "taew2_1.safetensors")
  _run(tmp_path / "taew2_1.safetensors", tmp_path / "model")
  arrays = model_folder.load_model_state(tmp_path / "model")[0]
  kernel = tree_names.flat_dict(arrays)["conv_out/kernel"]
  assert kernel.dtype == np.float32
  theirs = given["decoder.22.weight"].astype(np.float32)
  np.testing.assert_array_equal(kernel, theirs.transpose(2, 3, 1, 0))
