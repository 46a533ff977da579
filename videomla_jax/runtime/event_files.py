"""Keeps one file of TensorBoard events for all earlier starts of a run.

The writer opens a new file at every start, and a run that is preempted often
would leave thousands. Events are records one behind the other, so whole files
can be joined.
"""

from collections.abc import Iterator
import pathlib

from videomla_jax.storage import atomic
from videomla_jax.storage import ordinary_files

_PATTERN = "events.out.tfevents.*"
_AROUND = 16  # bytes of length and checksums around the data of a record


def join(folder: pathlib.Path) -> None:
  """Joins all event files of a folder into the oldest.

  Args:
    folder: Folder of a run, which nobody writes events to.

  Raises:
    OSError: If the disk is full; the files are as they were.
    BadFile: If one is no ordinary file.
  """
  # Names hold the time at which a file was opened.
  files = sorted(folder.glob(_PATTERN))
  if len(files) < 2:
    return
  with atomic.replacing(files[0]) as temporary, temporary.open("wb") as joined:
    for path in files:
      for record in _records(_read(path)):
        joined.write(record)
  for path in files[1:]:
    path.unlink()


def _read(path: pathlib.Path) -> bytes:
  """Returns the events of one start, which are no more than a few MB."""
  return ordinary_files.read_bytes(path, limit=ordinary_files.MOST_BYTES)


def _records(data: bytes) -> Iterator[bytes]:
  """Yields whole records; one that a kill cut short is dropped."""
  at = 0
  while at + _AROUND <= len(data):
    end = at + _AROUND + int.from_bytes(data[at : at + 8], "little")
    if end > len(data):
      return
    yield data[at:end]
    at = end
