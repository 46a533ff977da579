"""Finished data sets of prepared clips: where they lie and what they hold.

A data set is a folder, OUTPUT/video_latents/1.0.0, with these files:

video_latents-train.array_record-00000-of-00042   clips, or prompts alone
dataset_info.json, features.json                  what TFDS reads
null_text.npy                                     the negative prompt
report.json, quarantine.jsonl                     what became of every input
"""

from collections.abc import Iterator
import json
import os
import pathlib
from typing import Any

from jaxtyping import UInt16
import numpy as np

from videomla_jax.storage import state_digests

NAME = "video_latents"
VERSION = "1.0.0"
SPLITS = ("train", "test")
NULL_TEXT_FILE = "null_text.npy"
REPORT_FILE = "report.json"
QUARANTINE_FILE = "quarantine.jsonl"


def read_report(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the report of a finished data set.

  Args:
    folder: Root of TFDS data sets, or the data set's own folder.

  Raises:
    ValueError: If there is no data set.
  """
  path = locate(folder) / REPORT_FILE
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise ValueError(
      f"{str(path)!r} cannot be read ({error}); make the data set with"
      " python -m videomla_jax.prepare."
    ) from error


def locate(folder: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the folder of the data set itself.

  Args:
    folder: That folder, or the root of TFDS data sets.
  """
  root = pathlib.Path(os.path.expanduser(folder))
  # Commands take the root, but people also name the folder that they see.
  inner = root / NAME / VERSION
  return inner if inner.is_dir() else root


def verify(folder: str | os.PathLike[str], *, digests: bool) -> None:
  """Compares the shards with the report.

  Args:
    folder: Root of TFDS data sets, or the data set's own folder.
    digests: Whether every byte is compared, or only the sizes of files.

  Raises:
    ValueError: If a shard is missing or differs.
  """
  root = locate(folder)
  for name, reason in problems(root, digests=digests):
    raise _damaged(root / name, reason)


def problems(
  root: pathlib.Path, *, digests: bool = True
) -> Iterator[tuple[str, str]]:
  """Yields what is wrong with a data set, file by file.

  Args:
    root: The data set's own folder.
    digests: Whether every byte is compared, or only the sizes of files.

  Yields:
    The name of a file in the folder, and what is wrong with it.

  Raises:
    ValueError: If there is no report.
  """
  for name, about in read_report(root)["shards"].items():
    path = root / name
    if not path.is_file():
      yield name, "is missing"
    elif path.stat().st_size != about["bytes"]:
      yield name, f"has {path.stat().st_size} of {about['bytes']} bytes"
    elif digests and state_digests.sha256(path) != about["sha256"]:
      yield name, "has another sha256 than in the report"


def _damaged(path: pathlib.Path, reason: str) -> ValueError:
  return ValueError(
    f"shard {str(path)!r} {reason}; copy it again, or delete the data set and"
    " run python -m videomla_jax.prepare."
  )


def read_null_text(
  folder: str | os.PathLike[str],
) -> UInt16[np.ndarray, "m E"]:
  """Returns the embedding of the negative prompt as bits of bfloat16.

  Args:
    folder: Root of TFDS data sets, or the data set's own folder.
  """
  return np.load(locate(folder) / NULL_TEXT_FILE, allow_pickle=False)
