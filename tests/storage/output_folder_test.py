"""Tests of folders for results."""

import pathlib

import pytest

from videomla_jax.storage import output_folder


def test_good_folder_is_created_and_stays_empty(tmp_path: pathlib.Path) -> None:
  folder = output_folder.check(tmp_path / "a" / "b")
  assert folder.is_dir() and not list(folder.iterdir())


def test_unwritable_folder_is_one_sentence_with_the_path(
  tmp_path: pathlib.Path,
) -> None:
  (tmp_path / "file").write_text("")
  folder = tmp_path / "file" / "out"
  with pytest.raises(ValueError, match="choose a folder") as error:
    output_folder.check(folder)
  assert str(folder) in str(error.value) and "\n" not in str(error.value)
