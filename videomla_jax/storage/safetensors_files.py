"""Safetensors, alone or in shards with an index: read and written by tensor.

A file is the length of its header, the header in JSON, and raw values. The
header alone is read first, so that a network larger than memory passes through
it tensor by tensor.
"""

import json
import math
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from videomla_jax.storage import lazy_tensor

Tensors = dict[str, lazy_tensor.LazyTensor]

INDEX = ".safetensors.index.json"
DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}


def read_file(path: pathlib.Path) -> Tensors:
  """Reads the header of a file, whose tensors are then read one by one.

  Args:
    path: The file.

  Raises:
    ValueError: If the file is damaged, or has numbers of eight bits.
  """
  try:
    with safetensors.safe_open(path, framework="numpy"):
      pass  # this checks the header against the length of the file
    with path.open("rb") as file:
      length = int.from_bytes(file.read(8), "little")
      header = json.loads(file.read(length))
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise ValueError(
      f"source={str(path)!r} is damaged or incomplete ({error}); download it "
      "again."
    ) from error
  # Free text of the writer stands in the header as if it were a tensor.
  header.pop("__metadata__", None)
  return {
    name: _from_header(path, 8 + length, about, name)
    for name, about in header.items()
  }


def _from_header(
  path: pathlib.Path, start: int, about: dict[str, Any], name: str
) -> lazy_tensor.LazyTensor:
  if about["dtype"] not in DTYPES:
    raise ValueError(
      f"source={str(path)!r} has {name} in {about['dtype']}; quantised and "
      "8-bit weights are not supported, give float32, bfloat16 or float16."
    )
  shape, dtype = tuple(about["shape"]), DTYPES[about["dtype"]]
  offset = start + about["data_offsets"][0]

  def read() -> np.ndarray:
    count = math.prod(shape)
    flat = np.fromfile(path, dtype, count, offset=offset)
    if flat.size != count:
      raise ValueError(
        f"source={str(path)!r} became shorter while it was read."
      )
    return flat.reshape(shape)

  return lazy_tensor.LazyTensor(shape, dtype, read)


def read_shards(path: pathlib.Path) -> Tensors:
  """Reads an index and the headers of its shards.

  Args:
    path: The index, beside its shards.

  Raises:
    ValueError: If the index or a shard is damaged or missing.
  """
  try:
    shards = json.loads(path.read_text())["weight_map"]
  except (OSError, ValueError, KeyError) as error:
    raise ValueError(
      f"source={str(path)!r} is no index of shards; download it again."
    ) from error
  files = sorted(set(shards.values()))
  # Anybody may have written the index, and it must not make us read elsewhere.
  outside = [f for f in files if pathlib.PurePath(f).name != f]
  if outside:
    raise ValueError(
      f"source={str(path)!r} names shards outside its folder: {outside}."
    )
  missing = [f for f in files if not (path.parent / f).is_file()]
  if missing:
    raise ValueError(
      f"source={str(path)!r} lacks the shards {missing}; download them."
    )
  opened = {file: read_file(path.parent / file) for file in files}
  absent = sorted(n for n, file in shards.items() if n not in opened[file])
  if absent:
    raise ValueError(
      f"source={str(path)!r} has shards without {absent[:6]}; download them "
      "again."
    )
  return {name: opened[file][name] for name, file in shards.items()}
