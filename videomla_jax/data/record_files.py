"""Files of records: how they are packed, named, written and shared."""

from collections.abc import Callable
from collections.abc import Iterable
import contextlib
import os
import pathlib
import shutil

from array_record.python import array_record_module
from jaxtyping import Float, UInt16
import ml_dtypes
import numpy as np

from videomla_jax.data import disk


def pack(text: Float[np.ndarray, "m E"]) -> UInt16[np.ndarray, "m E"]:
  """Returns embeddings as the bits of bfloat16."""
  return text.astype(ml_dtypes.bfloat16).view(np.uint16)


def unpack(
  text: UInt16[np.ndarray, "m E"], *, num_tokens: int
) -> Float[np.ndarray, "M E"]:
  """Returns embeddings in bfloat16, padded with zeros as Wan pads.

  Args:
    text: Bits of bfloat16.
    num_tokens: Tokens M after padding.
  """
  # The numbers stay in bfloat16: float32 would double what is sent to the
  # device and add nothing.
  rows = np.zeros((num_tokens, text.shape[1]), ml_dtypes.bfloat16)
  rows[: len(text)] = text.view(ml_dtypes.bfloat16)
  return rows


def write(path: str | os.PathLike[str], records: Iterable[bytes]) -> int:
  """Writes one ArrayRecord file and returns the number of records.

  Args:
    path: File to write.
    records: Serialised records.

  Raises:
    OSError: If the disk takes no more.
  """
  # A group has one record, since records are read in random order.
  writer = array_record_module.ArrayRecordWriter(
    os.fspath(path), "group_size:1"
  )
  count = 0
  closed = False
  try:
    for record in records:
      _or_error(lambda record=record: writer.write(record))
      count += 1
    closed = True
    _or_error(writer.close)
  finally:
    if not closed:
      # What is written is thrown away, and so is what closing says of it.
      with contextlib.suppress(RuntimeError):
        writer.close()
  return count


def _or_error(write: Callable[[], object]) -> None:
  """Calls a function of the library, which knows one kind of error."""
  try:
    write()
  except RuntimeError as error:
    raise disk.error_of(str(error)) from error


def file_name(split: str, index: int, count: int, *, dataset: str) -> str:
  """Returns the name of a shard as TFDS wants it.

  Args:
    split: Split such as "train".
    index: Number of the shard, from 0.
    count: Number of shards of the split.
    dataset: Name of the data set.
  """
  return f"{dataset}-{split}.array_record-{index:05d}-of-{count:05d}"


def link_or_copy(source: pathlib.Path, target: pathlib.Path) -> None:
  """Gives a finished file another name; a link needs no space.

  Args:
    source: The file.
    target: Its other name.
  """
  try:
    os.link(source, target)
  except OSError:  # Not every file system has links.
    shutil.copyfile(source, target)
