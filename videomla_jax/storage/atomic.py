"""Files and folders that are complete or absent: written aside, then renamed.

This is the one module of the package that puts results on disk. Whoever is
killed at any moment leaves either what was there before or what is new, and at
most a hidden temporary name, which the next writer of the same path removes.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import os
import pathlib
import stat

from videomla_jax.storage import folder_swap
from videomla_jax.storage import temporary_names

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[pathlib.Path]:
  """Gives a temporary path and renames it to `path` when the block ends well.

  The temporary name is unique, so that two processes may write the same file:
  the last one wins, and a reader never sees half of it. After an exception
  nothing is left. A link stays a link, and what it points to is replaced.

  Args:
    path: The file to replace; its folder exists.

  Yields:
    The path of an empty file to write to, in the same folder.

  Raises:
    ValueError: If something is there that is no file.
  """
  target = check_replaceable(path)
  temporary_names.remove_leftovers(target)
  temporary = temporary_names.beside(target)
  try:
    temporary.touch(exist_ok=False)
    with temporary_names.held(temporary):
      yield temporary
      sync(temporary)
      os.replace(temporary, target)
    sync(target.parent)
  finally:
    # After a rename that went well nothing has this name any more.
    temporary_names.remove(temporary)


@contextlib.contextmanager
def replacing_folder(
  path: PathLike, *, is_ours: Callable[[pathlib.Path], bool] | None = None
) -> Iterator[pathlib.Path]:
  """Gives an empty folder that takes the place of `path` at the end.

  As `replacing`, for folders: an older one is exchanged for the new one in one
  step and then removed, see `folder_swap`.

  Args:
    path: The folder to create or replace; its parents are created.
    is_ours: Tells whether a folder may be replaced although it is not empty; by
      default none may.

  Yields:
    The path of an empty folder beside the target.

  Raises:
    ValueError: If something is there that may not be replaced.
  """
  target = check_replaceable_folder(path, is_ours=is_ours)
  target.parent.mkdir(parents=True, exist_ok=True)
  temporary_names.recover(target)
  temporary_names.remove_leftovers(target)
  temporary = temporary_names.beside(target)
  try:
    temporary.mkdir()
    with temporary_names.held(temporary):
      yield temporary
      sync_all(temporary)
      # Something else may have appeared there since.
      check_replaceable_folder(target, is_ours=is_ours)
      folder_swap.swap(temporary, target)
    sync(target.parent)
  finally:
    # What was replaced has this name now.
    temporary_names.remove(temporary)


def write_text(path: PathLike, text: str) -> None:
  """Writes a text file in UTF-8, which is complete or absent.

  Args:
    path: The file to replace; its folder exists.
    text: What to write.
  """
  with replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


def check_replaceable(path: PathLike) -> pathlib.Path:
  """Refuses a path at which no file can be written, or none may be replaced.

  Args:
    path: The file to create or replace.

  Returns:
    Where the file is, behind all links.

  Raises:
    ValueError: If a folder or a device is there, or the name is too long.
  """
  target = _behind_links(path)
  mode = _mode(target)
  if mode is not None and not stat.S_ISREG(mode):
    what = "a folder" if stat.S_ISDIR(mode) else "no ordinary file"
    raise ValueError(
      f"{str(path)!r} is {what}, which no file may replace; give the path of a"
      " file."
    )
  return target


def check_replaceable_folder(
  path: PathLike, *, is_ours: Callable[[pathlib.Path], bool] | None = None
) -> pathlib.Path:
  """Refuses a path at which no folder can be written, or none be replaced.

  Args:
    path: The folder to create or replace.
    is_ours: Tells whether a folder may be replaced although it is not empty; by
      default none may.

  Returns:
    Where the folder is, behind all links.

  Raises:
    ValueError: If a file is there, or a folder that holds something else, or
      the name is too long.
  """
  target = _behind_links(path)
  mode = _mode(target)
  if mode is None:
    return target
  if not stat.S_ISDIR(mode):
    raise ValueError(
      f"{str(path)!r} is a file, which no folder may replace; give the path of"
      " a new folder."
    )
  full = any(target.iterdir())
  if full and not (is_ours is not None and is_ours(target)):
    raise ValueError(
      f"folder {str(path)!r} holds other files, which would be lost; give a new"
      " or empty folder, or one that the same command wrote."
    )
  return target


def sync(path: pathlib.Path) -> None:
  """Waits until a file, or the names in a folder, are on disk.

  Args:
    path: A file or a folder.
  """
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError:
    # A few file systems cannot do it for folders, where nothing is lost but
    # the order of writing. A file must be on disk.
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
      raise
  finally:
    os.close(descriptor)


def sync_all(folder: pathlib.Path) -> None:
  """Waits until everything in a folder is on disk.

  Args:
    folder: The folder, with all that is below it.
  """
  for parent, _, files in os.walk(folder):
    for name in files:
      sync(pathlib.Path(parent, name))
    sync(pathlib.Path(parent))


def _behind_links(path: PathLike) -> pathlib.Path:
  """Returns where a file or folder is, or is to be."""
  target = pathlib.Path(os.path.realpath(path))
  if len(os.fsencode(target.name)) > temporary_names.MAX_NAME_BYTES:
    raise ValueError(
      f"{str(path)!r} has a name of more than"
      f" {temporary_names.MAX_NAME_BYTES} bytes, which no disk takes; give a"
      " shorter one."
    )
  if target.is_symlink():
    raise ValueError(
      f"{str(path)!r} is a link that leads back to itself; remove it, or give"
      " another path."
    )
  return target


def _mode(path: pathlib.Path) -> int | None:
  """Returns what is at a path, or None for nothing."""
  try:
    return path.stat().st_mode
  except (FileNotFoundError, NotADirectoryError):
    return None
