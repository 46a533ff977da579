"""Tests of files that are whole or not there."""

import pytest

from videomla_jax.storage import atomic


def test_the_file_appears_when_the_block_ends(tmp_path) -> None:
  path = tmp_path / "a.txt"
  with atomic.replacing(path) as temporary:
    temporary.write_text("new")
    assert not path.exists() and temporary.parent == tmp_path
  assert path.read_text() == "new"
  assert [*tmp_path.iterdir()] == [path]


def test_after_an_error_the_file_is_the_one_before(tmp_path) -> None:
  path = tmp_path / "a.txt"
  atomic.write_text(path, "é\n")
  with pytest.raises(KeyboardInterrupt):
    with atomic.replacing(path) as temporary:
      temporary.write_text("half")
      raise KeyboardInterrupt
  assert path.read_bytes() == "é\n".encode()
  assert [*tmp_path.iterdir()] == [path]


def test_two_writers_do_not_meet(tmp_path) -> None:
  path = tmp_path / "a.txt"
  with atomic.replacing(path) as one, atomic.replacing(path) as two:
    assert one != two
    one.write_text("one")
    two.write_text("two")
  assert path.read_text() == "one"  # the outer block ends last
