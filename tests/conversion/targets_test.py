"""Tests of places that a conversion must not write to."""

import pathlib

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import tiny_release
from videomla_jax import convert
from videomla_jax.storage import model_folder


@pytest.fixture
def given(tmp_path: pathlib.Path, seed: int) -> pathlib.Path:
  """A folder with one network."""
  path = tmp_path / "given"
  path.mkdir()
  rng = np.random.default_rng(seed)
  tensors = tiny_release.draw(tiny_release.dit_table(), rng)
  safetensors_numpy.save_file(tensors, path / "x.safetensors")
  return path


def _snapshot(folder: pathlib.Path) -> dict[str, bytes]:
  files = (p for p in sorted(folder.rglob("*")) if p.is_file())
  return {str(p): p.read_bytes() for p in files}


def _refused(source, output, words: str, **changes: object) -> None:
  folder = pathlib.Path(source).parent
  before = _snapshot(folder)
  options = dict(source=str(source), output=str(output)) | changes
  with pytest.raises(ValueError, match=words):
    convert.convert(tiny_release.options(**options))
  assert _snapshot(folder) == before


def test_source_and_output_lie_apart(given) -> None:
  file = given / "x.safetensors"
  _refused(given, given, "is the source")
  _refused(file, file, "is the source")
  _refused(given, given / "model", "lies in the source")
  _refused(file, given, "holds the source")
  link = given.with_name("link")
  link.symlink_to(given)
  _refused(given, link / "model", "lies in the source")
  _refused(link, given / "model", "lies in the source")


@pytest.mark.parametrize("export", ["", "original"])
def test_files_are_no_folders(given, export: str) -> None:
  output = given.with_name("notes.txt")
  output.write_text("mine")
  _refused(given, output, "is a file", export=export)
  _refused(given, output / "model", "is a file", export=export)
  assert output.read_text() == "mine"


def test_folders_of_others_are_not_replaced(given) -> None:
  output = given.with_name("out")
  output.mkdir()
  convert.convert(
    tiny_release.options(source=str(given), output=str(output))
  )  # it was empty
  assert model_folder.is_model_folder(output)
  convert.convert(tiny_release.options(source=str(given), output=str(output)))
  (output / model_folder.CONFIG).rename(output / "mine.json")
  (output / model_folder.DIGESTS).unlink()
  _refused(given, output, "holds other files, which would be lost")


def test_exports_do_not_go_into_a_model(given) -> None:
  output = given.with_name("out")
  convert.convert(tiny_release.options(source=str(given), output=str(output)))
  _refused(given, output, "is a model folder", export="original")


@pytest.mark.parametrize(
  ("output", "words"),
  [
    ("/proc/self/model", r"output='/proc/self/model' cannot be written"),
    ("x" * 300, "more than 255 bytes"),
    ("a\0b", "zero character"),
  ],
)
def test_impossible_places_are_refused(given, output, words) -> None:
  _refused(given, output, words)
