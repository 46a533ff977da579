"""Tests of bad files: whatever a library raises, one sentence names the file."""

import lzma
import pathlib
import struct
import zipfile
import zlib

import pytest

from videomla_jax.storage import foreign_files

_PATH = pathlib.Path("folder/file.bin")


@pytest.mark.parametrize(
  "error",
  [
    zipfile.BadZipFile("bad"), zlib.error("bad"), lzma.LZMAError("bad"),
    RecursionError("bad"), TypeError("bad"), AttributeError("bad"),
    NotImplementedError("bad"), MemoryError("bad"), OverflowError("bad"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), struct.error("bad"),
    RuntimeError("bad"), KeyError("bad"), IndexError("bad"), EOFError(),
    PermissionError(13, "Permission denied"), ValueError("two\nlines \x1b[2J"),
  ],
  ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_every_error_is_a_sentence_that_names_the_file(error) -> None:
  with pytest.raises(ValueError) as info:
    with foreign_files.reading(_PATH):
      raise error
  message = str(info.value)
  assert message.startswith("source='folder/file.bin' is damaged or incomplete")
  assert message.endswith("; download it again.")
  assert message.isprintable() and len(message) < 200


def test_sentences_about_a_file_stay_as_they_are() -> None:
  with pytest.raises(ValueError, match="^as it is$"):
    with foreign_files.reading(_PATH):
      raise foreign_files.BadFileError("as it is")


@pytest.mark.parametrize("error", [KeyboardInterrupt, AssertionError])
def test_what_is_no_fault_of_a_file_passes(error) -> None:
  with pytest.raises(error):
    with foreign_files.reading(_PATH):
      raise error


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a":' * 100_000, "nested too deeply"),
    (b"[1]", "is a list and no object"),
    (b"null", "is a NoneType and no object"),
    (b'"\xff"', "damaged"),
    (b'{"a": 1' + b"1" * 5000 + b"}", "damaged"),
    (b"", "damaged"),
  ],
)
def test_bad_json_is_refused(tmp_path, content: bytes, words: str) -> None:
  (tmp_path / "x.json").write_bytes(content)
  with pytest.raises(ValueError, match=rf"x\.json.*{words}"):
    foreign_files.read_json(tmp_path / "x.json")
