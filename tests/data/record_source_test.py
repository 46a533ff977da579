"""Tests that what lies beside records leads TFDS nowhere else."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests import tiny_dataset
from videomla_jax.data import record_files
from videomla_jax.data import record_source


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp("data")
  return tiny_dataset.write(root, np.random.default_rng(0), digests=False)


def _change(folder: pathlib.Path, name: str, old: str, new: str) -> None:
  text = (folder / name).read_text()
  assert old in text
  (folder / name).write_text(text.replace(old, new, 1))


_TEMPLATE = '"filepathTemplate": "'


@pytest.mark.parametrize(
  ("name", "old", "new", "words"),
  [
    ("dataset_info.json", _TEMPLATE, f"{_TEMPLATE}/etc/", "another form"),
    ("dataset_info.json", _TEMPLATE, f"{_TEMPLATE}../", "another form"),
    ("dataset_info.json", '"filepathT', '"filepath_t', "does not write"),
    ("dataset_info.json", '"video_latents"', '"../../x"', "is not about"),
    ("dataset_info.json", '"array_record"', '"tfrecord"', "is not about"),
    ("dataset_info.json", '"train"', '"../x"', "another form"),
    ("dataset_info.json", '"splits": [', '"splits": [3, ', "another form"),
    ("dataset_info.json", '"2",', '"2", "2",', "cannot be opened"),
    ("features.json", '"bytes"', '"zlib"', "are compressed"),
    ("features.json", "scalar.Scalar", "image_feature.Image", "names a class"),
    ("features.json", "tensorflow_datasets.core", "os", "names a class"),
  ],
)
def test_descriptions_of_others_are_refused(
  written, tmp_path, name, old, new, words
) -> None:
  folder = tmp_path / "1.0.0"
  shutil.copytree(written, folder)
  record_source.open_builder(folder)
  _change(folder, name, old, new)
  with pytest.raises(ValueError, match=rf"{name}.*{words}|{words}"):
    record_source.open_builder(folder)


def test_too_many_features_and_shards_are_refused(
  written, tmp_path, monkeypatch
) -> None:
  monkeypatch.setattr(record_source, "_MOST_SHARDS", 1)
  with pytest.raises(ValueError, match="more than 1 shards"):
    record_source.open_builder(written)
  monkeypatch.setattr(record_source, "_MOST_FEATURES", 3)
  with pytest.raises(ValueError, match="more than 3 features"):
    record_source.open_builder(written)


def test_shards_that_unpack_to_much_more_are_refused(
  written, tmp_path, monkeypatch
) -> None:
  folder = tmp_path / "1.0.0"
  shutil.copytree(written, folder)
  about = json.loads((folder / "report.json").read_text())
  shard = next(name for name in about["shards"] if "array_record" in name)
  monkeypatch.setattr(record_files, "_FREE_BYTES", 2**16)
  (folder / shard).unlink()
  record_files.write(folder / shard, [bytes(20 * 2**20)])
  with pytest.raises(ValueError, match=f"{shard}.*unpack to 2"):
    record_source.open_builder(folder)
