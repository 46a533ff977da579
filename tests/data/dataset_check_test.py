"""Tests of the check of a whole data set: each flipped bit is found."""

import pathlib
import shutil

import numpy as np
import pytest

from tests import tiny_project
from videomla_jax import prepare
from videomla_jax.data import dataset
from videomla_jax.data import dataset_check
from videomla_jax.data import preparation
from videomla_jax.runtime import config_reader


def _config(root: pathlib.Path):
  (root / "p.txt").write_text("a cat\na dog\na fox\n")
  config = tiny_project.config("prepare", "tiny")
  config.update(
    prompts=str(root / "p.txt"), output=str(root / "data"), test_fraction=0.0
  )
  return config


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp("made")
  prepare.prepare(_config(root))
  return dataset.locate(root / "data")


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> pathlib.Path:
  """An unfinished data set, all of whose shards are there."""
  root = tmp_path_factory.mktemp("begun")
  plan = prepare.make_plan(config_reader.read(prepare.Request, _config(root)))
  preparation.run(plan)
  return plan.work


def _flip(path: pathlib.Path, rng: np.random.Generator) -> bytes:
  """Flips a bit of a file, and returns what was there."""
  before = path.read_bytes()
  data = bytearray(before)
  data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
  path.write_bytes(data)
  return before


@pytest.mark.parametrize("kind", ["made", "begun"])
def test_each_flipped_bit_is_found(kind, request, tmp_path, seed):
  folder = request.getfixturevalue(kind)
  copy = tmp_path / folder.name
  shutil.copytree(folder, copy)
  assert dataset_check.is_data_set(copy)
  assert dataset_check.check(copy) == []
  rng = np.random.default_rng(seed)
  files = [path for path in copy.iterdir() if path.stat().st_size]
  assert len(files) >= 5
  for path in files:
    for _ in range(12):
      before = _flip(path, rng)
      found = dataset_check.check(copy)
      path.write_bytes(before)
      assert found, path
      stems = {pathlib.Path(name).stem for name, _ in found}
      # A flipped bit of the list of digests may blame the file in that line.
      assert path.stem in stems or path.name == dataset.DIGESTS_FILE
  assert dataset_check.check(copy) == []


def test_what_is_missing_is_found(made, tmp_path):
  for name in [path.name for path in made.iterdir()]:
    copy = tmp_path / name
    shutil.copytree(made, copy)
    (copy / name).unlink()
    if name != dataset.DIGESTS_FILE:  # as in data sets of older versions
      assert dataset_check.check(copy) == [(str(copy / name), "is missing")]


def test_data_sets_of_older_versions_are_compared_with_their_report(
  made, tmp_path, seed
):
  copy = tmp_path / "old"
  shutil.copytree(made, copy)
  (copy / dataset.DIGESTS_FILE).unlink()
  assert dataset_check.check(copy) == []
  (shard,) = copy.glob("*-00000-of-*")
  _flip(shard, np.random.default_rng(seed))
  ((name, reason),) = dataset_check.check(copy)
  assert name == str(shard) and "sha256" in reason


def test_reading_for_training_finds_changed_numbers(made, tmp_path, seed):
  rng = np.random.default_rng(seed)
  for name in (
    *dataset.TFDS_FILES,
    dataset.REPORT_FILE,
    dataset.NULL_TEXT_FILE,
    dataset.DIGESTS_FILE,
  ):
    copy = tmp_path / name
    shutil.copytree(made, copy)
    _flip(copy / name, rng)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
      dataset.verify(copy, digests=False)
      dataset.read_null_text(copy)


def test_folders_that_are_no_data_sets_are_told_apart(tmp_path):
  assert not dataset_check.is_data_set(tmp_path)
  assert not dataset_check.is_data_set(tmp_path / "none")
  ((name, reason),) = dataset_check.check(tmp_path / "none")
  assert name == str(tmp_path / "none") and reason == "is no folder"
