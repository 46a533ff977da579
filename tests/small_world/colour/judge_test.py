"""Tests of the reader of digits: accuracy and cache."""

import pytest

from videomla_jax.small_world.colour import glyphs
from videomla_jax.small_world.colour import judge as judge_lib


def test_reader_knows_held_out_handwriting(reader_and_report):
  _, report = reader_and_report
  print(report.text())
  assert report.identity > 0.9  # the full recipe reaches 0.98
  assert report.identity_clean > 0.9


def test_cache_returns_the_same_reader(
  reader_and_report, tmp_path, monkeypatch
):
  calls = []

  def train(seed, *, recipe):
    calls.append((seed, recipe))
    return reader_and_report

  monkeypatch.setattr(judge_lib, "train", train)
  path = tmp_path / "reader.npz"
  judge_lib.load_or_train(path)
  loaded, report = judge_lib.load_or_train(path)
  assert len(calls) == 1
  assert report == reader_and_report[1]
  assert isinstance(loaded, glyphs.Reader)
  judge_lib.load_or_train(path, recipe=judge_lib.Recipe(num_epochs=1))
  judge_lib.load_or_train(path, seed=1)
  assert len(calls) == 3


def test_recipe_rejects_a_batch_larger_than_the_data():
  with pytest.raises(ValueError, match="batch_size=9 must be from 1 to"):
    judge_lib.Recipe(num_crops=8, batch_size=9)
