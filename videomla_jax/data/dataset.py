"""Finished data sets of prepared clips: where they lie and what they hold.

A data set is a folder, OUTPUT/video_latents/1.0.0, with these files:

video_latents-train.array_record-00000-of-00042   clips, or prompts alone
dataset_info.json, features.json                  what TFDS reads
null_text.npy                                     the negative prompt
report.json, quarantine.jsonl                     what became of every input
sha256.json                                       digest of every other file
"""

import hashlib
import json
import math
import os
import pathlib
import re
from typing import Any

from jaxtyping import UInt16
import numpy as np

from videomla_jax.storage import ordinary_files

NAME = "video_latents"
VERSION = "1.0.0"
UNFINISHED = ".incomplete"  # behind the version, while shards are missing
SPLITS = ("train", "test")
NULL_TEXT_FILE = "null_text.npy"
REPORT_FILE = "report.json"
QUARANTINE_FILE = "quarantine.jsonl"
DIGESTS_FILE = "sha256.json"
TFDS_FILES = ("dataset_info.json", "features.json")

_NPY = re.compile(
  rb"\x93NUMPY\x01\x00..\{'descr': '<u2', 'fortran_order': False,"
  rb" 'shape': \(([0-9]{1,6}), ([0-9]{1,6})\), \} *\n",
  re.DOTALL,
)

# Fields of the report that something is computed from.
_REPORT = {
  "identity": str,
  "inputs": int,
  "used": int,
  "excluded": dict,
  "quarantined": int,
  "clips": dict,
  "latent_shape": (list, type(None)),
  "text_width": int,
  "max_tokens": int,
  "shards": dict,
}


def read_report(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the report of a finished data set.

  Args:
    folder: Root of TFDS data sets, or the data set's own folder.

  Raises:
    ValueError: If there is no data set, or the report is damaged.
  """
  root = locate(folder)
  try:
    report = ordinary_files.parse_json(read_file(root, REPORT_FILE))
    _check_report(report)
  except ordinary_files.BadFile as error:
    raise ValueError(
      f"{str(root / REPORT_FILE)!r} cannot be read: it {error}; make the data"
      " set with python -m videomla_jax.prepare."
    ) from error
  return report


def locate(folder: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the folder of the data set itself.

  Args:
    folder: That folder, or the root of TFDS data sets.
  """
  root = pathlib.Path(os.path.expanduser(folder))
  # Commands take the root, but people also name the folder that they see.
  inner = root / NAME / VERSION
  return inner if inner.is_dir() else root


def read_digests(root: pathlib.Path) -> dict[str, str]:
  """Returns the digest of each file, by name.

  Data sets of older versions have no such list, and theirs is empty.

  Args:
    root: The data set's own folder.

  Raises:
    BadFile: If there is a list and it is damaged.
  """
  if not os.path.lexists(root / DIGESTS_FILE):
    return {}
  content = ordinary_files.read_bytes(
    root / DIGESTS_FILE, limit=ordinary_files.MOST_BYTES
  )
  digests = ordinary_files.parse_json(content)
  # A flipped bit in a name or in white space shows here.
  if digests_text(digests).encode() != content or not all(
    isinstance(digest, str) and name == os.path.basename(name)
    for name, digest in digests.items()
  ):
    raise ordinary_files.BadFile("is not as it was written")
  return digests


def digests_text(digests: dict[str, Any]) -> str:
  """Returns the text of the list of digests.

  Args:
    digests: Digest of each file, by name.
  """
  return json.dumps(digests, indent=1, sort_keys=True) + "\n"


def read_file(root: pathlib.Path, name: str) -> bytes:
  """Returns a file of a data set that is as it was written.

  Args:
    root: The data set's own folder.
    name: Name of a file that is no shard.

  Raises:
    BadFile: If it cannot be read or was changed since.
  """
  content = ordinary_files.read_bytes(
    root / name, limit=ordinary_files.MOST_BYTES
  )
  try:
    digests = read_digests(root)
  except ordinary_files.BadFile as error:
    raise ordinary_files.BadFile(
      f"cannot be compared with {DIGESTS_FILE}, which {error}"
    ) from error
  if digests and digests.get(name) != hashlib.sha256(content).hexdigest():
    raise ordinary_files.BadFile(f"has another sha256 than in {DIGESTS_FILE}")
  return content


def verify(folder: str | os.PathLike[str], *, digests: bool) -> None:
  """Compares a data set with what its report says of it.

  Args:
    folder: Root of TFDS data sets, or the data set's own folder.
    digests: Whether every byte of the shards is compared, or only their sizes.
      All other files are read and compared at once.

  Raises:
    ValueError: If a file is missing or differs.
  """
  root = locate(folder)
  report = read_report(root)
  listed = read_digests(root)
  for name, about in report["shards"].items():
    if listed and listed.pop(name, None) != about["sha256"]:
      raise _damaged(
        root / DIGESTS_FILE, f"and {REPORT_FILE} disagree about {name!r}"
      )
    reason = fault_of_shard(root / name, about, digests=digests)
    if reason:
      raise _damaged(root / name, reason)
  for name in {*listed, *TFDS_FILES}:
    try:
      read_file(root, name)
    except ordinary_files.BadFile as error:
      raise _damaged(root / name, f"is damaged: it {error}") from error


def fault_of_shard(
  path: pathlib.Path, about: dict[str, Any], *, digests: bool
) -> str:
  """Returns what is wrong with a shard, or an empty text.

  Args:
    path: The shard.
    about: Its "bytes" and its "sha256".
    digests: Whether every byte is compared, or only the size.
  """
  try:
    with ordinary_files.open_file(path) as file:
      size = os.fstat(file.fileno()).st_size
      if size != about["bytes"]:
        return f"has {size} of {about['bytes']} bytes"
      if digests:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != about["sha256"]:
          return "has another sha256 than in the report"
  except ordinary_files.BadFile as error:
    return str(error) if os.path.lexists(path) else "is missing"
  except OSError as error:
    return f"cannot be read ({error.strerror})"
  return ""


def read_null_text(
  folder: str | os.PathLike[str],
) -> UInt16[np.ndarray, "m E"]:
  """Returns the embedding of the negative prompt as bits of bfloat16.

  Args:
    folder: Root of TFDS data sets, or the data set's own folder.

  Raises:
    ValueError: If the file is damaged.
  """
  root = locate(folder)
  try:
    return _parse_npy(read_file(root, NULL_TEXT_FILE))
  except ordinary_files.BadFile as error:
    reason = f"is damaged: it {error}"
    raise _damaged(root / NULL_TEXT_FILE, reason) from error


def _parse_npy(content: bytes) -> UInt16[np.ndarray, "m E"]:
  """Returns the array of an .npy file, whose sizes are checked first."""
  # NumPy's own reader evaluates the header, which is an expression of Python,
  # and allocates what it asks for.
  header = _NPY.match(content)
  if header is None:
    raise ordinary_files.BadFile("holds no embedding of a prompt")
  shape = int(header[1]), int(header[2])
  data = content[header.end() :]
  if len(data) != 2 * math.prod(shape):
    raise ordinary_files.BadFile("is shorter or longer than its embedding")
  return np.frombuffer(data, np.uint16).reshape(shape)


def _check_report(report: dict[str, Any]) -> None:
  """Refuses a report whose fields are missing or of other kinds."""
  for name, kinds in _REPORT.items():
    value = report.get(name)
    known = name in report and isinstance(value, kinds)
    if not known or isinstance(value, bool):
      raise ordinary_files.BadFile(f"has no {name!r}, or one of another kind")
    if isinstance(value, int) and value < 0:
      raise ordinary_files.BadFile(f"has a negative {name!r}")
  sizes = report["latent_shape"]
  if sizes is not None and not (
    len(sizes) == 4 and all(type(size) is int and size > 0 for size in sizes)
  ):
    raise ordinary_files.BadFile("has no four sizes in 'latent_shape'")
  check_shards(report)


def check_shards(report: dict[str, Any]) -> None:
  """Refuses a report that lists shards in another form.

  Args:
    report: The report.

  Raises:
    BadFile: If it does.
  """
  if not isinstance(report.get("shards"), dict):
    raise ordinary_files.BadFile("lists no shards")
  for name, about in report["shards"].items():
    if (
      not name
      or name != os.path.basename(name)
      or not isinstance(about, dict)
      or type(about.get("bytes")) is not int
      or not isinstance(about.get("sha256"), str)
    ):
      raise ordinary_files.BadFile("lists shards in another form")


def _damaged(path: pathlib.Path, reason: str) -> ValueError:
  what = "shard" if "array_record" in path.name else "file"
  return ValueError(
    f"{what} {str(path)!r} {reason}; copy it again, or delete the data set and"
    " run python -m videomla_jax.prepare."
  )
