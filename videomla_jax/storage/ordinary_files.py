"""Reads small files that anybody may have written: bounded, and as files only.

A pipe or a device under the name of a file would block or never end, a file of
gigabytes would fill the memory, and a link may lead to either. What cannot be
read raises `BadFile` with the reason alone; whoever asked names the file.
"""

import io
import json
import os
import stat
from typing import Any

MIB = 2**20
MOST_BYTES = 1024 * MIB  # of files that grow with a run or a data set
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks


class BadFile(ValueError):
  """Says why a file cannot be read, in words that follow its name."""


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
  """Opens an ordinary file for reading; links are followed.

  Args:
    path: The file.

  Raises:
    BadFile: If it is missing, not ours to read, or no ordinary file.
  """
  try:
    file = open(path, "rb", opener=_descriptor)  # noqa: SIM115
  except ValueError as error:  # a NUL in the path
    raise BadFile(f"is no path ({error})") from error
  except IsADirectoryError as error:
    raise BadFile("is no ordinary file") from error
  except OSError as error:
    raise BadFile(f"cannot be opened ({error.strerror})") from error
  if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    file.close()
    raise BadFile("is no ordinary file")
  return file


def _descriptor(path: str, flags: int) -> int:
  """Opens a file as Python asks for it, and never waits at a pipe."""
  return os.open(path, flags | os.O_NONBLOCK)


def read_bytes(path: str | os.PathLike[str], *, limit: int) -> bytes:
  """Returns the content of a file.

  Args:
    path: The file.
    limit: Most bytes that it may have.

  Raises:
    BadFile: If it cannot be read or is larger.
  """
  with open_file(path) as file:
    try:
      content = file.read(limit + 1)
    except OSError as error:
      raise BadFile(f"cannot be read ({error.strerror})") from error
  if len(content) > limit:
    raise BadFile(f"has more than {limit} bytes")
  return content


def read_text(path: str | os.PathLike[str], *, limit: int) -> str:
  """Returns the text of a file in UTF-8, without its byte order mark.

  Args:
    path: The file.
    limit: Most bytes that it may have.

  Raises:
    BadFile: If it cannot be read, is larger, or is no such text.
  """
  return decode(read_bytes(path, limit=limit))


def decode(content: bytes) -> str:
  """Returns bytes as the text that they are in UTF-8.

  Args:
    content: Bytes, with or without a byte order mark.

  Raises:
    BadFile: If they are in another encoding, or no text at all.
  """
  if is_utf_16(content):
    raise BadFile("is in UTF-16 and not in UTF-8")
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise BadFile("is not in UTF-8") from error
  if "\0" in text:
    raise BadFile("is no text, for it has NUL characters")
  return text


def is_utf_16(content: bytes) -> bool:
  """Says whether bytes begin with the mark of UTF-16.

  Args:
    content: First bytes of a text.
  """
  return content.startswith(_UTF_16)


def read_json(
  path: str | os.PathLike[str], *, limit: int = 64 * MIB
) -> dict[str, Any]:
  """Returns the object that a JSON file holds.

  Args:
    path: The file.
    limit: Most bytes that it may have.

  Raises:
    BadFile: If it cannot be read, is larger, or holds no JSON object.
  """
  return parse_json(read_bytes(path, limit=limit))


def parse_json(content: bytes) -> dict[str, Any]:
  """Returns the object that some bytes of JSON hold.

  Args:
    content: Bytes of a file.

  Raises:
    BadFile: If they are no JSON, or hold something else than an object.
  """
  try:
    value = json.loads(decode(content))
  except BadFile:
    raise
  except RecursionError as error:
    raise BadFile("has JSON that is nested too deeply") from error
  except ValueError as error:
    raise BadFile("is no JSON") from error
  if not isinstance(value, dict):
    raise BadFile(f"has JSON that is a {type(value).__name__} and no object")
  return value
