"""Safetensors, alone or in shards with an index: read and written by tensor.

A file is the length of its header, the header in JSON, and raw values. The
header alone is read first, so that a network larger than memory passes through
it tensor by tensor.
"""

import math
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from videomla_jax.storage import foreign_files
from videomla_jax.storage import lazy_tensor
from videomla_jax.storage import ordinary_files
from videomla_jax.storage import printable

Tensors = dict[str, lazy_tensor.LazyTensor]

INDEX = ".safetensors.index.json"
FLOATS = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Weights are never whole numbers, but what stands beside them may be.
DTYPES = FLOATS | {"I32": np.dtype(np.int32), "I64": np.dtype(np.int64)}

_LENGTH = 8  # bytes that hold the length of the header
_MOST_HEADER = 64 * 2**20
MOST_TENSORS = 2**17
_MOST_SHARDS = 1000  # Wan2.1-T2V-14B has 6
_MOST_AXES = 16


def read_file(path: pathlib.Path) -> Tensors:
  """Reads the header of a file, whose tensors are then read one by one.

  Args:
    path: The file.

  Raises:
    BadFileError: If the file is damaged, or has numbers of eight bits.
  """
  foreign_files.check_kind(path)
  with foreign_files.reading(path, also=(safetensors.SafetensorError,)):
    header, start = _read_header(path)
    if len(header) > MOST_TENSORS:
      raise ValueError(f"it has more than {MOST_TENSORS} tensors")
    with safetensors.safe_open(path, framework="numpy"):
      pass  # this checks the header against the length of the file
    # Free text of the writer stands in the header as if it were a tensor.
    header.pop("__metadata__", None)
    return {
      name: _from_header(path, start, about, name)
      for name, about in header.items()
    }


def _read_header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
  """Returns the header, and where the values begin."""
  with ordinary_files.open_file(path) as file:
    length = int.from_bytes(file.read(_LENGTH), "little")
    left = path.stat().st_size - _LENGTH
    # A length that a stranger chose is compared before memory is asked for.
    if not 0 < length <= left or length > _MOST_HEADER:
      raise ValueError(f"its header has {length} bytes of {max(left, 0)}")
    return ordinary_files.parse_json(file.read(length)), _LENGTH + length


def _from_header(
  path: pathlib.Path, start: int, about: dict[str, Any], name: str
) -> lazy_tensor.LazyTensor:
  kind = about["dtype"]
  if kind not in DTYPES:
    raise foreign_files.BadFileError(
      f"source={str(path)!r} has {printable.text(name)} in "
      f"{printable.text(kind)}; quantised and 8-bit weights are not supported, "
      "give float32, bfloat16 or float16."
    )
  shape, dtype = tuple(about["shape"]), DTYPES[kind]
  if len(shape) > _MOST_AXES:
    raise ValueError(f"a tensor has {len(shape)} axes")
  offset = start + about["data_offsets"][0]

  def read() -> np.ndarray:
    count = math.prod(shape)
    with foreign_files.reading(path):
      flat = np.fromfile(path, dtype, count, offset=offset)
      if flat.size != count:
        raise ValueError("it became shorter while it was read")
    return flat.reshape(shape)

  return lazy_tensor.LazyTensor(shape, dtype, read)


def read_shards(path: pathlib.Path) -> Tensors:
  """Reads an index and the headers of its shards.

  Args:
    path: The index, beside its shards.

  Raises:
    BadFileError: If the index or a shard is damaged or missing.
  """
  shards = _weight_map(path)
  files = sorted(set(shards.values()))
  if len(files) > _MOST_SHARDS or len(shards) > MOST_TENSORS:
    raise foreign_files.BadFileError(
      f"source={str(path)!r} names {len(shards)} tensors in {len(files)} "
      f"shards; at most {MOST_TENSORS} in {_MOST_SHARDS} are read, so give the "
      "index of one network."
    )
  # Anybody may have written the index, and it must not make us read elsewhere.
  outside = [f for f in files if pathlib.PurePath(f).name != f or "\0" in f]
  if outside:
    raise foreign_files.BadFileError(
      f"source={str(path)!r} names shards outside its folder: "
      f"{printable.names(map(repr, outside))}; download it again."
    )
  missing = [f for f in files if not _exists(path.parent / f)]
  if missing:
    raise foreign_files.BadFileError(
      f"source={str(path)!r} lacks the shards "
      f"[{printable.names(map(repr, missing))}]; download them."
    )
  opened = {file: read_file(path.parent / file) for file in files}
  absent = sorted(n for n, file in shards.items() if n not in opened[file])
  if absent:
    raise foreign_files.BadFileError(
      f"source={str(path)!r} has shards without "
      f"[{printable.names(map(repr, absent))}]; download them again."
    )
  return {name: opened[file][name] for name, file in shards.items()}


def _weight_map(path: pathlib.Path) -> dict[str, str]:
  """Returns the shard of each tensor."""
  foreign_files.check_kind(path)
  shards = foreign_files.read_json(path).get("weight_map")
  if not isinstance(shards, dict) or not shards:
    raise foreign_files.BadFileError(
      f"source={str(path)!r} is no index of shards (it has no weight_map); "
      "download it again."
    )
  if not all(isinstance(file, str) for file in shards.values()):
    raise foreign_files.BadFileError(
      f"source={str(path)!r} is no index of shards (a tensor has no file); "
      "download it again."
    )
  return shards


def _exists(path: pathlib.Path) -> bool:
  """Says whether a file is there; a name too long for the disk is not."""
  try:
    return path.is_file()
  except OSError:
    return False
