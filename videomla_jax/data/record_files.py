"""Files of records: how they are packed, named, written and shared."""

from collections.abc import Callable
from collections.abc import Iterable
import contextlib
import os
import pathlib
import shutil

from array_record.python import array_record_module
from jaxtyping import Float, Int, UInt8, UInt16, UInt64
import ml_dtypes
import numpy as np

from videomla_jax.data import disk
from videomla_jax.storage import ordinary_files

_BLOCK = 2**16  # bytes of a block of a file of records
_SCANNED = 32 * _BLOCK  # bytes that are looked at in one go
_BLOCK_HEAD, _HEAD = 24, 40  # bytes at the start of a block and of records
# Latents and embeddings hardly get smaller, but pictures of digits do.
_MOST_GROWTH, _FREE_BYTES = 50, 512 * ordinary_files.MIB


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


def check_growth(path: str | os.PathLike[str]) -> None:
  """Refuses a file whose records are much larger than the file.

  A record is unpacked as a whole, however few bytes it has on disk, and the
  reader knows no bound. So every place that could be the head of packed records
  is looked at.

  Args:
    path: The file, which is read as a whole.

  Raises:
    BadFile: If it has records that unpack to far more bytes than they take.
  """
  with ordinary_files.open_file(path) as file:
    size = os.fstat(file.fileno()).st_size
    most, unpacked, rest = _MOST_GROWTH * size + _FREE_BYTES, 0, b""
    while piece := file.read(_SCANNED):
      # Every block begins with a head of its own, which may cut another in two.
      starts = range(0, len(piece), _BLOCK)
      rest += b"".join(piece[i + _BLOCK_HEAD : i + _BLOCK] for i in starts)
      unpacked += _unpacked(np.frombuffer(rest, np.uint8), size)
      rest = rest[-_HEAD + 1 :]
      if unpacked > most:
        raise ordinary_files.BadFile(
          f"has {size} bytes and records that unpack to {unpacked} or more"
        )


def _unpacked(data: UInt8[np.ndarray, "n"], size: int) -> int:
  """Adds up what all that could be heads of packed records say of their size.

  A head has five words of eight bytes: a digest, bytes on disk, another digest,
  the kind with the number of records, and bytes when they are unpacked. Nothing
  else has so many zeros at these places.
  """
  last = max(0, len(data) - _HEAD + 1)
  at = lambda byte: data[byte : byte + last]
  places = (at(24) == ord("r")) | (at(24) == ord("t"))
  for zero in (14, 15, 30, 31, 38, 39):  # high bytes of the three numbers
    places &= at(zero) == 0
  heads = np.flatnonzero(places)
  packed, count, unpacked = (_words(data, heads + k) for k in (8, 24, 32))
  is_head = (packed <= size) & (count >> 8 < 2**40) & (unpacked < 2**44)
  return int(unpacked[is_head].sum(dtype=np.float64))


def _words(
  data: UInt8[np.ndarray, "n"], places: Int[np.ndarray, "p"]
) -> UInt64[np.ndarray, "p"]:
  """Returns the eight bytes at each of some places as whole numbers."""
  found = data[places[:, None] + np.arange(8)]
  return np.ascontiguousarray(found).view("<u8")[:, 0]


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
