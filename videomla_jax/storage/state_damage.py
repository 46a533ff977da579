"""Whether the files of a training state are whole, damaged, or out of reach."""

import errno
import os
import pathlib

from videomla_jax.storage import ordinary_files
from videomla_jax.storage import state_digests

META = "meta/metadata"  # Orbax's file of JSON values
LISTED = "listed"  # mark in it of states that have a list of digests
# What the file system says of files that are damaged, and not out of reach.
ERRORS = (
  *(errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.EUCLEAN),
  *(errno.EBADMSG, errno.ELOOP, errno.ENXIO),
)


def of(folder: pathlib.Path, step: int) -> str:
  """Says what is wrong with the files of one state, or nothing.

  Args:
    folder: Folder of the state.
    step: Number of finished steps that it must be of.

  Raises:
    ValueError: If files cannot be opened, which is no damage.
  """
  try:
    if not state_digests.exists(folder) and not _is_listed(folder):
      # Of an earlier version, so there is nothing to compare.
      special = sorted(state_digests.special_files(folder))
      return f"{special[0]} is no ordinary file" if special else ""
    found = [f"{a} {b}" for a, b in state_digests.problems(folder, step)]
  except OSError as error:
    if error.errno not in ERRORS:
      raise unreadable(folder, error) from error
    return str(error)
  more = f" and {len(found) - 2} more" if len(found) > 2 else ""
  return ", ".join(found[:2]) + more


def _is_listed(folder: pathlib.Path) -> bool:
  """Tells whether a state without a list must have had one."""
  try:
    return LISTED in ordinary_files.read_json(folder / META)
  except ordinary_files.BadFile as error:
    if isinstance(error.__cause__, OSError) and os.path.lexists(folder / META):
      raise error.__cause__ from error
    return False  # Restoring it fails as well.


def unreadable(folder: pathlib.Path, error: OSError) -> ValueError:
  """Builds the error for files that may be whole.

  Args:
    folder: Folder of a state.
    error: What the system said.
  """
  return ValueError(
    f"training state {str(folder)!r} cannot be opened"
    f" ({error.strerror or error}); give this user the right to read it, or"
    " look after the disk; nothing was changed"
  )
