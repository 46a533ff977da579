"""Tests of what a model folder may replace, and of weights that are refused."""

import os

import ml_dtypes
import numpy as np
import pytest

from videomla_jax.storage import model_folder
from videomla_jax.storage import model_writer
from videomla_jax.storage import params_skeleton

_SPEC = params_skeleton.Parameter((2, 3), np.dtype(np.float32), True)


def _save(path, value=1.0, kind="whole") -> None:
  """Writes a model of six equal numbers, as a whole or block by block."""
  x = np.full((2, 3), value, np.float32)
  if kind == "whole":
    model_folder.save_model(path, {"x": x}, {})
    return
  with model_writer.ModelWriter(path, {"x": _SPEC}, {}) as writer:
    for block in range(2):
      writer.write("x", x[block], block=block)


def _value(path) -> float:
  arrays, _ = model_folder.load_model_state(path)
  return float(np.asarray(arrays["x"])[1, 2])


@pytest.mark.parametrize("kind", ["whole", "blocks"])
def test_a_link_leads_to_the_folder_on_its_disk(tmp_path, kind) -> None:
  (tmp_path / "disk").mkdir()
  link = tmp_path / "model"
  link.symlink_to(tmp_path / "disk" / "model")
  for value in (1.0, 2.0):  # without a model there, and with one
    _save(link, value, kind)
    assert link.is_symlink() and _value(link) == value
  assert os.listdir(tmp_path / "disk") == ["model"]
  assert sorted(os.listdir(tmp_path)) == ["disk", "model"]


@pytest.mark.parametrize("kind", ["whole", "blocks"])
def test_nothing_but_a_model_is_replaced(tmp_path, kind) -> None:
  (tmp_path / "file").write_text("mine")
  (tmp_path / "folder").mkdir()
  (tmp_path / "folder" / "thesis.txt").write_text("mine")
  for name in ("file", "folder"):
    with pytest.raises(ValueError, match=name):
      model_folder.check_replaceable(tmp_path / name)
    with pytest.raises(ValueError, match=name):
      _save(tmp_path / name, kind=kind)
  assert (tmp_path / "file").read_text() == "mine"
  assert os.listdir(tmp_path / "folder") == ["thesis.txt"]
  assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
  # An empty folder, and a damaged model, hold nothing to lose.
  (tmp_path / "empty").mkdir()
  _save(tmp_path / "damaged", 1.0, kind)
  (tmp_path / "damaged" / model_folder.CONFIG).write_text("{")
  for name in ("empty", "damaged"):
    _save(tmp_path / name, 2.0, kind)
    assert _value(tmp_path / name) == 2.0


@pytest.mark.parametrize("kind", ["whole", "blocks"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(
  tmp_path, kind, value
) -> None:
  _save(tmp_path / "model", 1.0, kind)
  with pytest.raises(ValueError, match="of 'x' are not finite"):
    _save(tmp_path / "model", value, kind)
  assert _value(tmp_path / "model") == 1.0
  assert os.listdir(tmp_path) == ["model"]


def test_numbers_of_any_type_are_checked() -> None:
  for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
    good = np.ones(4, dtype)
    model_folder.check_finite("x", good)
    good[2] = np.inf
    with pytest.raises(ValueError, match="1 of 4 numbers of 'x'"):
      model_folder.check_finite("x", good)
  model_folder.check_finite("x", np.arange(3))
