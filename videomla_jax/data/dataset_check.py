"""Finds every file of a data set that is not as it was written."""

from collections.abc import Iterator
import hashlib
import os
import pathlib

from videomla_jax.data import dataset
from videomla_jax.data import shards
from videomla_jax.storage import ordinary_files

# What every data set has, beside its shards.
_NEEDED = (
  dataset.REPORT_FILE,
  dataset.NULL_TEXT_FILE,
  dataset.QUARANTINE_FILE,
  *dataset.TFDS_FILES,
)


def is_data_set(folder: str | os.PathLike[str]) -> bool:
  """Says whether a folder looks like the output of `prepare`.

  Args:
    folder: Any folder: the root of data sets, a data set, or an unfinished one.
  """
  root = _locate(folder)
  names = (dataset.REPORT_FILE, dataset.NULL_TEXT_FILE)
  return root.is_dir() and (
    _is_unfinished(root) or any(os.path.lexists(root / n) for n in names)
  )


def check(folder: str | os.PathLike[str]) -> list[tuple[str, str]]:
  """Reads a whole data set and lists what is wrong with it.

  Every byte is compared with the digest that was taken when it was written;
  data sets of older versions have digests of their shards alone. Of an
  unfinished data set the shards that are there are compared.

  Args:
    folder: Root of TFDS data sets, the data set's own folder, or that of an
      unfinished one.

  Returns:
    Path and reason of each damaged file; nothing if all is well.
  """
  root = _locate(folder)
  if not root.is_dir():
    return [(str(root), "is no folder")]
  if _is_unfinished(root):
    faults = shards.faults(root)
  else:
    faults = _faults(root)
  return [(str(root / name), reason) for name, reason in faults]


def digests(folder: pathlib.Path) -> str:
  """Returns the list of the digests of all files in a folder.

  Args:
    folder: A data set that is complete but for this list.
  """
  found = {path.name: _digest(path) for path in folder.iterdir()}
  return dataset.digests_text(found)


def _locate(folder: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the folder of a data set, be it finished or not."""
  root = dataset.locate(folder)
  work = root / dataset.NAME / f"{dataset.VERSION}{dataset.UNFINISHED}"
  return work if work.is_dir() else root


def _is_unfinished(root: pathlib.Path) -> bool:
  return root.name.endswith(dataset.UNFINISHED)


def _faults(root: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields name and reason of each damaged file of a finished data set."""
  try:
    listed = dataset.read_digests(root)
  except ordinary_files.BadFile as error:
    yield dataset.DIGESTS_FILE, str(error)
    return
  if not listed:
    yield from _faults_without_digests(root)
    return
  for name in sorted({*listed, *_NEEDED}):
    if name not in listed:
      yield name, f"is not listed in {dataset.DIGESTS_FILE}"
    elif not os.path.lexists(root / name):
      yield name, "is missing"
    else:
      try:
        if _digest(root / name) != listed[name]:
          yield name, f"has another sha256 than in {dataset.DIGESTS_FILE}"
      except ordinary_files.BadFile as error:
        yield name, str(error)


def _faults_without_digests(root: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields what the report tells of a data set of an older version."""
  try:
    content = dataset.read_file(root, dataset.REPORT_FILE)
    report = ordinary_files.parse_json(content)
    dataset.check_shards(report)
  except ordinary_files.BadFile as error:
    yield dataset.REPORT_FILE, str(error)
    return
  for name, about in report["shards"].items():
    reason = dataset.fault_of_shard(root / name, about, digests=True)
    if reason:
      yield name, reason
  for name in dataset.TFDS_FILES:
    if not os.path.lexists(root / name):  # shards alone were copied
      continue
    try:
      ordinary_files.parse_json(dataset.read_file(root, name))
    except ordinary_files.BadFile as error:
      yield name, str(error)


def _digest(path: pathlib.Path) -> str:
  with ordinary_files.open_file(path) as file:
    try:
      return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
      raise ordinary_files.BadFile(
        f"cannot be read ({error.strerror})"
      ) from error
