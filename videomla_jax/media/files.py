"""Opens files that strangers made: regular files on this machine, and no more.

Decoders get an open file and never a name, so nothing in a name (`http://`,
`concat:`, `%03d`) and nothing inside a file can make them open anything else.
"""

import os
import stat
from typing import BinaryIO

_SNIFFED = 512  # bytes, enough for the first lines of a text file

# What files of the wrong kind begin with, in lower case, and what they are.
_BEGINNINGS = (
  (
    b"version https://git-lfs",
    "it is a Git LFS pointer and not the file itself; run `git lfs pull`",
  ),
  (b"#extm3u", "it is a playlist, which is not followed; give the file itself"),
  (
    b"ffconcat",
    "it is a playlist, which is not followed; give the file itself",
  ),
  (b"<!doctype html", "it is a web page; download the file itself"),
  (b"<html", "it is a web page; download the file itself"),
)


class Unusable(Exception):
  """Says why a picture or a clip cannot be used, without naming the file.

  Records of one data set are made on several machines, on which paths differ.
  """


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
  """Opens a regular file for reading; links to one are followed.

  Args:
    path: The file.

  Raises:
    Unusable: If it is missing, a folder, a device, a pipe or empty, or if its
      first bytes say that it is something else than pictures.
  """
  try:
    # Opening a pipe would wait for a writer, which may never come.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  except FileNotFoundError as error:
    raise Unusable("there is no such file on this machine") from error
  except ValueError as error:  # A NUL character within the name.
    raise Unusable("its name is none that a file can have") from error
  except OSError as error:
    raise Unusable(f"it cannot be opened ({error.strerror})") from error
  if not stat.S_ISREG(os.fstat(number).st_mode):
    os.close(number)
    raise Unusable("it is a folder, a device or a pipe, and no regular file")
  file = os.fdopen(number, "rb")
  try:
    _check(file)
  except BaseException:
    file.close()
    raise
  return file


def _check(file: BinaryIO) -> None:
  """Refuses a file whose first bytes say that it is something else."""
  try:
    head = file.read(_SNIFFED)
    file.seek(0)
  except OSError as error:
    raise Unusable(f"it cannot be read ({error.strerror})") from error
  if not head:
    raise Unusable("it is empty")
  text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
  for beginning, what in _BEGINNINGS:
    if text.startswith(beginning):
      raise Unusable(what)
