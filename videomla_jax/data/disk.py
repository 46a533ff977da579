"""Explains why results cannot be written, when that is a matter of the disk."""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib

# A full disk, a quota, a limit of the process, a disk that takes no writes.
_REASONS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
  errno.EIO,
  errno.ENAMETOOLONG,
  errno.ENOTDIR,
  errno.EEXIST,
)


@contextlib.contextmanager
def explained(path: str | os.PathLike[str], way_out: str) -> Iterator[None]:
  """Turns an error of the disk into a sentence.

  Other errors pass, so that a fault of ours is not blamed on the disk.

  Args:
    path: What is written.
    way_out: What the user should do, in words that end the sentence.

  Raises:
    ValueError: In place of an `OSError` of the disk.
  """
  try:
    yield
  except OSError as error:
    if error.errno not in _REASONS:
      raise
    raise ValueError(
      f"output={os.fspath(path)!r} cannot be written"
      f" ({os.strerror(error.errno)}); {way_out}."
    ) from error


def error_of(text: str) -> OSError:
  """Returns the error of the disk that a library reports as a text alone.

  Args:
    text: Message of the library.
  """
  for number in _REASONS:
    if os.strerror(number) in text:
      return OSError(number, os.strerror(number))
  return OSError(errno.EIO, os.strerror(errno.EIO))


def check_name(path: str | os.PathLike[str], *, field: str) -> None:
  """Refuses names that no disk takes, before any work.

  Args:
    path: What will be written.
    field: Key of the config, for the message.

  Raises:
    ValueError: If a name has more than 255 bytes, or a NUL.
  """
  text = os.fspath(path)
  if "\0" in text:
    raise ValueError(
      f"{field}={text!r} has a NUL character; give another path."
    )
  for name in pathlib.Path(text).parts:
    if len(os.fsencode(name)) > 255:
      raise ValueError(
        f"{field} has the name {name[:40]!r}..., whose"
        f" {len(os.fsencode(name))} bytes exceed the 255 that disks take; give"
        " a shorter one."
      )
