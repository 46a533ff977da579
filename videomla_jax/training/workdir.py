"""One run at a time in a folder: two would overwrite each other's states."""

from collections.abc import Iterator
import contextlib
import fcntl
import pathlib

from absl import logging
import jax

LOCK_FILE = ".lock"


@contextlib.contextmanager
def exclusive(root: pathlib.Path) -> Iterator[None]:
  """Keeps other runs out of a folder while the block runs.

  The lock belongs to the first process of the run and goes with it, however it
  ends, so nothing has to be tidied up after a crash.

  Args:
    root: Folder of a run; exists.

  Raises:
    ValueError: If another run is in it.
  """
  if jax.process_index():
    yield
    return
  with (root / LOCK_FILE).open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(
        f"workdir={str(root)!r} is in use by another run; wait for it, stop it,"
        " or name another folder."
      ) from error
    except OSError as error:  # Some network file systems have no locks.
      logging.warning("%s cannot be locked (%s)", root, error)
    yield
