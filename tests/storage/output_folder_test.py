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


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("x" * 121, "has more than 120 bytes; use a shorter"),
    ("狐" * 41, "has more than 120 bytes"),  # 41 letters, 123 bytes
    ("a/b", "must be a name without folders"),
    ("..", "must be a name without folders"),
    ("-x", "must not be empty, begin with"),
    ("a\x1b[2J", "control characters"),
  ],
)
def test_names_that_make_bad_file_names_are_refused(
  name: str, words: str
) -> None:
  with pytest.raises(ValueError, match=words):
    output_folder.check_name(name, field="output.name")


def test_long_names_are_counted_in_bytes() -> None:
  for name in ("x" * 120, "狐" * 40, "a name.1"):
    output_folder.check_name(name, field="output.name")
