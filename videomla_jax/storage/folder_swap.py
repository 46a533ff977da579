"""Exchanges two folders in one step, or in two from which one recovers."""

import ctypes
import errno
import os
import pathlib

from videomla_jax.storage import temporary_names

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# What kernels, C libraries and file systems say that cannot exchange.
_NOT_HERE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)


def swap(new: pathlib.Path, target: pathlib.Path) -> None:
  """Gives a new folder the name of another, which may exist.

  Linux exchanges two names in one step on most local disks, so that at every
  moment a whole folder has the name `target`. Elsewhere the old folder is
  renamed first; a process killed between the two renames leaves it under a name
  that `temporary_names.recover` turns back.

  Args:
    new: The folder, complete. Afterwards the old one has this name, if any.
    target: The name that it gets.
  """
  while True:
    try:
      # This replaces an empty folder, too.
      os.rename(new, target)
      return
    except OSError as error:
      if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
        raise
    try:
      _exchange(new, target)
      return
    except FileNotFoundError:
      continue  # Another writer has just moved the old folder away.
    except OSError as error:
      if error.errno not in _NOT_HERE:
        raise
    if _in_two_renames(new, target):
      return


def _in_two_renames(new: pathlib.Path, target: pathlib.Path) -> bool:
  """Moves the old folder away, then the new one to its place.

  Args:
    new: The new folder.
    target: The name that it gets.

  Returns:
    Whether that worked; another writer may have come between.
  """
  old = temporary_names.beside(target, temporary_names.OLD)
  try:
    os.rename(target, old)
  except FileNotFoundError:
    return False
  try:
    os.rename(new, target)
  except OSError as error:
    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
      os.rename(old, target)
      raise
    temporary_names.remove(old)
    return False
  temporary_names.remove(old)
  return True


def _exchange(one: pathlib.Path, other: pathlib.Path) -> None:
  """Lets two names change places in one step.

  Args:
    one: A name that exists.
    other: Another one on the same disk.

  Raises:
    OSError: If system or disk cannot do it, or one of the names is missing.
  """
  # Python has no function for this call.
  call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
  if call is None:
    raise OSError(errno.ENOSYS, "no renameat2")
  result = call(
    _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other),
    ctypes.c_uint(_RENAME_EXCHANGE),
  )  # fmt: skip
  if result:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), str(other))
