"""Folders for results, proved to be writable before any work is done."""

import os
import pathlib
import tempfile


def check(path: str | os.PathLike[str]) -> pathlib.Path:
  """Creates a folder and proves that files can be written there.

  Args:
    path: Folder for results.

  Returns:
    The folder.

  Raises:
    ValueError: If the folder cannot be created or written to.
  """
  folder = pathlib.Path(path)
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


def check_name(name: str, *, field: str) -> None:
  """Refuses a first word of file names that would lead out of the folder.

  Args:
    name: First word of the file names.
    field: What the user calls it.

  Raises:
    ValueError: If it has folders in it, or a zero character.
  """
  if name == ".." or name != pathlib.PurePath(name).name or "\0" in name:
    raise ValueError(
      f"{field}={name!r} must be a name without folders; name the folder on its"
      " own."
    )
