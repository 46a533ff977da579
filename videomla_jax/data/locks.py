"""Lets one process at a time change a file or a folder.

The lock is one of the kernel on a hidden empty file beside the target, so it
ends with its process, however that ends. A file that a killed process left is
no lock.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import os
import pathlib


@contextlib.contextmanager
def alone(path: str | os.PathLike[str], *, wait: bool) -> Iterator[None]:
  """Holds the lock of a path for the `with` block.

  Args:
    path: What is to be changed; its folder exists.
    wait: Whether to wait for another process that holds it.

  Raises:
    BlockingIOError: If another process holds it and nobody is to wait.
  """
  target = pathlib.Path(path)
  # A digest, since the name of the target may fill all of its 255 bytes.
  digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
  name = target.with_name(f".{digest}.lock")
  descriptor = _locked(name, wait)
  try:
    yield
  finally:
    # It is removed while it is locked, so nobody can hold it.
    with contextlib.suppress(OSError):
      name.unlink()
    os.close(descriptor)


def _locked(name: pathlib.Path, wait: bool) -> int:
  """Returns an open file that has the name, with a lock on it."""
  while True:
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      os.close(descriptor)
      raise
    except OSError:
      # A few network file systems have no locks, and never had one here.
      return descriptor
    # Whoever held it before may have removed the file since it was opened.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(descriptor), os.stat(name)):
        return descriptor
    os.close(descriptor)
