"""Files of strangers: every way in which they can be bad is one sentence.

Libraries raise a dozen kinds of errors for bytes that are not what they should
be, and name no file. Readers run inside of `reading`, which names it.
"""

from collections.abc import Iterator
import contextlib
import lzma
import pathlib
import struct
from typing import Any
import zipfile
import zlib

from videomla_jax.storage import ordinary_files
from videomla_jax.storage import printable

# What libraries were seen to raise for bytes that are damaged or made to harm.
# Keyboard interrupts and failed assertions are none of them.
ERRORS: tuple[type[Exception], ...] = (
  ArithmeticError,
  AttributeError,
  EOFError,
  LookupError,
  MemoryError,
  OSError,
  RuntimeError,  # with it RecursionError and NotImplementedError
  TypeError,
  ValueError,  # with it UnicodeDecodeError
  lzma.LZMAError,
  struct.error,
  zipfile.BadZipFile,
  zipfile.LargeZipFile,
  zlib.error,
)

DOWNLOAD = "download it again"
_MOST_JSON = 64 * 2**20  # bytes; an index of 100,000 tensors has 10 MB


class BadFileError(ValueError):
  """A sentence about a bad file, which names it and needs no other words."""


@contextlib.contextmanager
def reading(
  path: pathlib.Path,
  *,
  way_out: str = DOWNLOAD,
  field: str = "source",
  also: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
  """Turns whatever a reader raises into one sentence that names the file.

  Args:
    path: The file.
    way_out: What to do about a file that is damaged.
    field: What the user calls the file.
    also: Errors of one library, beside those that all have.

  Raises:
    BadFileError: In place of what the block raises.
  """
  caught = ERRORS + also
  try:
    yield
  except BadFileError:
    raise
  except ordinary_files.BadFile as error:
    raise BadFileError(
      f"{field}={str(path)!r} is damaged or incomplete (it {error}); {way_out}."
    ) from error
  except caught as error:
    reason = printable.text(error) or type(error).__name__
    if isinstance(error, MemoryError):
      reason = "it needs more memory than there is"
    elif isinstance(error, RecursionError):
      reason = "it is nested too deeply"
    elif isinstance(error, OSError) and error.strerror:
      reason = error.strerror
    raise BadFileError(
      f"{field}={str(path)!r} is damaged or incomplete ({reason}); {way_out}."
    ) from error


def check_kind(path: pathlib.Path, *, field: str = "source") -> None:
  """Refuses what stands in place of a file that was not downloaded.

  Args:
    path: A file.
    field: What the user calls it.

  Raises:
    BadFileError: If it is a pointer of Git LFS, or a web page.
  """
  with reading(path, field=field), ordinary_files.open_file(path) as file:
    start = file.read(64).lstrip().lower()
  if start.startswith(b"version https://git-lfs"):
    raise BadFileError(
      f"{field}={str(path)!r} is a pointer of Git LFS and not the file itself; "
      "run `git lfs pull` in its folder, or download the file."
    )
  if start.startswith((b"<!doctype html", b"<html")):
    raise BadFileError(
      f"{field}={str(path)!r} is a web page and not the file itself; download "
      "the file, with your token if the page asks for one."
    )


def read_json(path: pathlib.Path, *, field: str = "source") -> dict[str, Any]:
  """Reads a JSON object.

  Args:
    path: The file.
    field: What the user calls it.

  Raises:
    BadFileError: If the file cannot be read or holds no object.
  """
  with reading(path, field=field):
    return ordinary_files.read_json(path, limit=_MOST_JSON)
