"""Folders for results, proved to be writable before any work is done."""

import os
import pathlib
import tempfile

from videomla_jax.storage import atomic
from videomla_jax.storage import paths

# A first word and a last one share the bytes that a name may have.
MAX_NAME_BYTES = 120


def check(path: str | os.PathLike[str]) -> pathlib.Path:
  """Creates a folder and proves that files can be written there.

  Args:
    path: Folder for results.

  Returns:
    The folder.

  Raises:
    ValueError: If the folder cannot be created or written to, or is not on this
      machine.
  """
  folder = pathlib.Path(paths.local(path, "output folder"))
  try:
    folder.mkdir(parents=True, exist_ok=True)
    # A file is really made, since permissions alone do not tell of every
    # refusal, such as that of a read-only disk.
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise ValueError(
      f"output folder {str(path)!r} cannot be written"
      f" ({error.strerror or error}); choose a folder that you may write to"
    ) from error
  return folder


def check_file(path: str | os.PathLike[str]) -> pathlib.Path:
  """Proves that a file can be written, which is done at the end of the work.

  Args:
    path: File to create or replace; its folder is created.

  Returns:
    The file.

  Raises:
    ValueError: If its folder cannot be written to, a folder is in its place, or
      no file can have its name.
  """
  file = check(pathlib.Path(paths.local(path, "output file")).parent) / (
    pathlib.Path(path).name
  )
  target = atomic.check_replaceable(file)
  # Disks differ in the length of names that they take. Nothing is made under
  # the name itself: another process may be about to finish a file there.
  try:
    target.lstat()
  except FileNotFoundError:
    pass
  except OSError as error:
    raise ValueError(
      f"output file {str(path)!r} cannot be written ({error.strerror}); use"
      " another, shorter name."
    ) from error
  return file


def check_name(name: str, *, field: str) -> None:
  """Refuses a first word of file names that would lead out of the folder.

  Args:
    name: First word of the file names.
    field: What the user calls it.

  Raises:
    ValueError: If it has folders in it, is hidden, looks like a flag, is too
      long, or has characters that cannot be printed.
  """
  if name == ".." or name != pathlib.PurePath(name).name or "\0" in name:
    raise ValueError(
      f"{field}={name!r} must be a name without folders; name the folder on its"
      " own."
    )
  if not name or name.startswith((".", "-", "~")) or not name.isprintable():
    raise ValueError(
      f"{field}={name!r} must not be empty, begin with '.', '-' or '~', or have"
      " control characters; use letters, such as 'sample'."
    )
  if len(name.encode()) > MAX_NAME_BYTES:
    raise ValueError(
      f"{field}={name!r} has more than {MAX_NAME_BYTES} bytes; use a shorter"
      " name."
    )
