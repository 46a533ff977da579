"""Names of what is still being written, and what killed writers left there.

A temporary name lies in the folder of its target and says which process of
which host writes it. So the next writer of the same target can tell what a dead
process left, and removes it.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
from typing import NamedTuple
import uuid

MAX_NAME_BYTES = 255  # of ext4, XFS, Btrfs, NFS and kin
NEW, OLD = ".tmp", ".old"
_MAX_HOST = 40
_UNKNOWN = "0"  # start of a process where the kernel does not tell


class _Writer(NamedTuple):
  """What a temporary name says of its process.

  Attributes:
    key: Digest of the target's name, which itself may be cut.
    host: Name of the machine.
    process: Its number.
    start: When it started, by the clock of the kernel; numbers are used again.
  """

  key: str
  host: str
  process: str
  start: str


def beside(target: pathlib.Path, suffix: str = NEW) -> pathlib.Path:
  """Returns a new hidden name in the folder of a target.

  Args:
    target: The file or folder that is to be replaced.
    suffix: `NEW` for what is being written, `OLD` for what is being replaced.

  Returns:
    A path whose name is unique and has at most 255 bytes.
  """
  process = os.getpid()
  writer = _Writer(
    _key(target), _host(), str(process), _start(process) or _UNKNOWN
  )
  tail = ".".join([*writer, uuid.uuid4().hex[:12]]) + suffix
  room = MAX_NAME_BYTES - len(tail) - 2
  # Bytes are cut, and half a letter at the end is dropped.
  name = os.fsencode(target.name)[:room].decode("utf-8", "ignore")
  return target.with_name(f".{name}.{tail}")


@contextlib.contextmanager
def held(path: pathlib.Path) -> Iterator[None]:
  """Locks a temporary file or folder while its writer lives.

  The number of a process means nothing in another container of the same host
  name, and the lock does.

  Args:
    path: A name of `beside`, which exists.
  """
  descriptor = os.open(path, os.O_RDONLY)
  try:
    # Some network file systems have no locks; the process number is left.
    with contextlib.suppress(OSError):
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
  finally:
    os.close(descriptor)


def remove_leftovers(target: pathlib.Path) -> None:
  """Removes what dead writers of a target left behind.

  What living processes or other hosts write stays.

  Args:
    target: The file or folder that is to be replaced.
  """
  for path, writer in _found(target):
    if writer.host == _host() and not _lives(path, writer):
      remove(path)


def recover(target: pathlib.Path) -> None:
  """Gives a folder its name back after a kill between two renames.

  Nothing happens if the folder is there. A writer that still lives finds the
  folder at its place again and moves it away once more.

  Args:
    target: The folder.
  """
  if os.path.lexists(target):
    return
  old = [path for path, _ in _found(target) if path.suffix == OLD]
  for path in sorted(old, key=os.path.getmtime, reverse=True)[:1]:
    # Another reader may have been faster.
    with contextlib.suppress(OSError):
      path.rename(target)


def remove(path: pathlib.Path) -> None:
  """Removes a file or a folder as far as that is possible.

  Args:
    path: What is to go; it may be missing.
  """
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
    return
  with contextlib.suppress(OSError):
    path.unlink()


def _found(
  target: pathlib.Path,
) -> Iterator[tuple[pathlib.Path, _Writer]]:
  """Yields the temporary names of a target that are on disk."""
  key = _key(target)
  try:
    names = os.listdir(target.parent)
  except OSError:
    return
  for name in names:
    if not (name.startswith(".") and name.endswith((NEW, OLD))):
      continue
    # The first part is empty, and those of the target's name are any number.
    parts = name.split(".")
    if len(parts) > 7 and parts[-6] == key:
      yield target.with_name(name), _Writer(*parts[-6:-2])
    elif ".".join(parts[1:-2]) == target.name and parts[-2].isdigit():
      # Earlier versions wrote nothing but the number of the process.
      yield target.with_name(name), _Writer(key, _host(), parts[-2], _UNKNOWN)


def _lives(path: pathlib.Path, writer: _Writer) -> bool:
  """Tells whether the writer of a temporary name may still be at work."""
  if not writer.process.isdigit():
    return True  # No name of ours.
  start = _start(int(writer.process))
  # Another process may have got the number since.
  if start == writer.start or (start and _UNKNOWN in (start, writer.start)):
    return True
  try:
    descriptor = os.open(path, os.O_RDONLY)
  except OSError:
    return True  # It is gone, or not ours.
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:
    pass
  finally:
    os.close(descriptor)
  return False


def _key(target: pathlib.Path) -> str:
  return hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]


def _host() -> str:
  """Returns a word for this machine, which holds no dots."""
  name = os.uname().nodename
  word = "".join(x if x.isalnum() and x.isascii() else "-" for x in name)
  if len(word) > _MAX_HOST:
    word = word[:27] + "-" + hashlib.sha256(name.encode()).hexdigest()[:12]
  return word or "-"


def _start(process: int) -> str | None:
  """Returns when a process started, or None if there is none."""
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return None
  except (OSError, OverflowError):
    pass  # It is of another user.
  try:
    text = pathlib.Path(f"/proc/{process}/stat").read_text()
  except OSError:
    return _UNKNOWN
  # The name of the program comes in brackets and may hold anything.
  state, *fields = text.rpartition(")")[2].split()
  return None if state in "ZX" else fields[18]
