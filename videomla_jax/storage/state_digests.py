"""Digests of the files of one training state.

Every step folder has a list of all its other files with sizes and SHA-256, the
number of its step, and a digest of the list itself. It is written before the
folder gets its name, so that a state is either unfinished or checkable. A
changed bit, a file that is lost, added, cut or renamed, parts of another step
and another number of the folder are all noticed.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from concurrent import futures
import hashlib
import json
import os
import pathlib
from typing import Any

from videomla_jax.storage import ordinary_files

FILE = "sha256.json"
_MOST_BYTES = 64 * ordinary_files.MIB
_THREADS = 4  # `hashlib` computes without Python's lock

Files = dict[str, list[int | str]]  # name in the folder -> bytes, SHA-256


def write(folder: pathlib.Path, step: int) -> None:
  """Writes the list of a folder that is complete but for it.

  Args:
    folder: Folder of a state, under its temporary name.
    step: Number of finished steps.
  """
  (folder / FILE).write_bytes(_text(step, _digests(folder, _names(folder))))


def problems(folder: pathlib.Path, step: int) -> Iterator[tuple[str, str]]:
  """Yields what is wrong with a state, file by file.

  Args:
    folder: Folder of a state.
    step: Number of finished steps that it must be of.

  Yields:
    The name of a file in the folder, and what is wrong with it.
  """
  try:
    found, listed = _read(folder)
  except ValueError as error:
    yield FILE, str(error)
    return
  if found != step:
    yield FILE, f"is of step {found} and not of step {step}"
  names = _names(folder)
  for name in sorted(listed.keys() - names):
    yield name, "is missing"
  for name in sorted(names - listed.keys()):
    # Systems leave hidden files, such as .nfs0001, which nobody reads.
    if not name.rpartition("/")[2].startswith("."):
      yield name, "does not belong to the state"
  for name in sorted(special_files(folder, names & listed.keys())):
    yield name, "is no ordinary file"
    names.remove(name)
  sizes = {n: (folder / n).stat().st_size for n in names & listed.keys()}
  for name, size in sorted(sizes.items()):
    if size != listed[name][0]:
      yield name, f"has {size} bytes instead of {listed[name][0]}"
  # Digests take seconds for each 10 GB, so sizes come first.
  same = {n for n, size in sizes.items() if size == listed[n][0]}
  for name, digest in _digests(folder, same).items():
    if digest != listed[name]:
      yield name, "has another checksum"


def is_whole(folder: pathlib.Path, name: str) -> bool:
  """Tells whether one file of a state is as it was written.

  Args:
    folder: Folder of a state.
    name: Name of the file in it.

  Raises:
    ValueError: If the list is damaged or missing.
  """
  _, listed = _read(folder)
  return _digests(folder, {name}).get(name) == listed.get(name)


def exists(folder: pathlib.Path) -> bool:
  """Tells whether a state has a list; earlier versions wrote none.

  Args:
    folder: Folder of a state.
  """
  return (folder / FILE).exists()


def special_files(
  folder: pathlib.Path, names: Iterable[str] | None = None
) -> set[str]:
  """Returns which files are none: pipes, devices, and links to nothing.

  Whoever opens a pipe may wait for ever.

  Args:
    folder: Folder of a state.
    names: Names of files in it; None looks at all.
  """
  names = _names(folder) if names is None else names
  return {name for name in names if not (folder / name).is_file()}


def sha256(path: pathlib.Path) -> str:
  """Returns the hexadecimal SHA-256 of a file.

  Args:
    path: The file, which is read in pieces.
  """
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _names(folder: pathlib.Path) -> set[str]:
  """Returns the names of all files in a folder but the list."""
  files = (x for x in folder.rglob("*") if not x.is_dir())
  return {x.relative_to(folder).as_posix() for x in files} - {FILE}


def _digests(folder: pathlib.Path, names: set[str]) -> Files:
  """Returns size and digest of files, several at a time."""

  def about(name: str) -> list[int | str]:
    path = folder / name
    return [os.path.getsize(path), sha256(path)]

  order = sorted(names)
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    return dict(zip(order, pool.map(about, order), strict=True))


def _text(step: int, files: Files) -> bytes:
  """Returns the bytes of the list, which are the same for the same files."""
  about: dict[str, Any] = {"step": step, "files": dict(sorted(files.items()))}
  digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()
  return json.dumps(about | {"itself": digest}, indent=1).encode()


def _read(folder: pathlib.Path) -> tuple[int, Files]:
  """Reads a list.

  Raises:
    ValueError: If it is missing, or not as `write` left it.
  """
  if not os.path.lexists(folder / FILE):
    raise ValueError("is missing")
  try:
    text = ordinary_files.read_bytes(folder / FILE, limit=_MOST_BYTES)
    about = ordinary_files.parse_json(text)
    step, files = about["step"], about["files"]
    # A changed blank would change nothing, but a disk that changes bits is not
    # to be trusted.
    intact = text == _text(step, files)
    for size, digest in files.values():
      intact &= isinstance(size, int) and isinstance(digest, str)
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError("cannot be read") from error
  except (TypeError, KeyError, AttributeError) as error:
    raise ValueError("cannot be read") from error
  if not intact:
    raise ValueError("was changed")
  return step, files
