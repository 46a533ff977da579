"""Tests that small files of strangers are files, and small."""

import os
import pathlib

import pytest

from videomla_jax.storage import ordinary_files


def _pipe(path: pathlib.Path) -> None:
  os.mkfifo(path)


def _endless(path: pathlib.Path) -> None:
  path.symlink_to("/dev/zero")


def _circle(path: pathlib.Path) -> None:
  path.symlink_to(path)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (_pipe, "is no ordinary file"),
    (_endless, "is no ordinary file"),
    (_circle, "cannot be opened"),
    (pathlib.Path.mkdir, "is no ordinary file"),
    (lambda path: None, "cannot be opened"),
    (lambda path: path.write_bytes(bytes(101)), "has more than 100 bytes"),
  ],
)
def test_what_is_no_small_file_is_refused_at_once(tmp_path, make, words):
  path = tmp_path / "x.json"
  make(path)
  with pytest.raises(ordinary_files.BadFile, match=words):
    ordinary_files.read_bytes(path, limit=100)
  with pytest.raises(ordinary_files.BadFile):
    ordinary_files.read_json(path, limit=100)


def test_links_to_files_are_followed(tmp_path) -> None:
  (tmp_path / "x").write_text('{"a": 1}')
  (tmp_path / "link").symlink_to("x")
  assert ordinary_files.read_json(tmp_path / "link") == {"a": 1}


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"[" * 100_000, "nested too deeply"),
    (b"[1]", "is a list and no object"),
    ('{"a": 1}'.encode("utf-16"), "UTF-16"),
    (b'{"a": "\0"}', "NUL"),
    (b"{", "is no JSON"),
  ],
)
def test_what_is_no_json_object_is_refused(tmp_path, content, words) -> None:
  (tmp_path / "x").write_bytes(content)
  with pytest.raises(ordinary_files.BadFile, match=words):
    ordinary_files.read_json(tmp_path / "x")
