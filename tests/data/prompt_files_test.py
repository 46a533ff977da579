"""Tests of prompts in files: one rule of what separates them."""

import os
import pathlib

import pytest

from videomla_jax.data import prompt_files


def test_line_breaks_alone_separate_prompts(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "p.txt"
  lines = ["a cat; asleep", "Tom &amp; Jerry", "one\u2028line\x0c", "雪"]
  for end in ("\n", "\r\n", "\r"):
    text = "\ufeff" + end.join([lines[0], "", *lines[1:]]) + end
    path.write_bytes(text.encode())
    assert prompt_files.read_prompts(path) == [x.strip() for x in lines]


@pytest.mark.parametrize(
  ("data", "message"),
  [
    ("café".encode("latin-1"), "is not in UTF-8"),
    ("a cat".encode("utf-16"), "is in UTF-16"),
    (b"a\0cat", "NUL"),
    (b"x" * (2**20 + 1), "1048577 letters in line 1"),
    (b" \n\t\n", "is empty"),
    (None, "no ordinary file"),
  ],
)
def test_bad_files_are_refused(
  tmp_path: pathlib.Path, data: bytes | None, message: str
) -> None:
  path = tmp_path / "p.txt"
  if data is None:
    os.mkfifo(path)
  else:
    path.write_bytes(data)
  with pytest.raises(ValueError, match=message) as error:
    prompt_files.read_prompts(path)
  assert f"prompts_file={str(path)!r}" in str(error.value)
