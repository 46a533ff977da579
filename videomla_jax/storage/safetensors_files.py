"""Safetensors, alone or in shards with an index: read and written by tensor.

A file is the length of its header, the header in JSON, and raw values. The
header alone is read first, so that a network larger than memory passes through
it tensor by tensor.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import json
import math
import os
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
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


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


def write_safetensors(
  path: str | os.PathLike[str],
  tensors: Mapping[str, lazy_tensor.LazyTensor],
  *,
  stem: str = "diffusion_pytorch_model",
  shard_bytes: int = 5 * 10**9,
) -> Iterator[str]:
  """Writes tensors one by one, each file complete or not at all.

  Args:
    path: Folder of the result: `STEM.safetensors`, or shards and their index
      above `shard_bytes`.
    tensors: What to write; one at a time is read.
    stem: Beginning of the names of the files.
    shard_bytes: Upper bound of a file's size, unless one tensor is larger.

  Yields:
    The name of each tensor after it is written, for a progress bar.
  """
  folder = pathlib.Path(path)
  folder.mkdir(parents=True, exist_ok=True)
  shards = _shards(tensors, shard_bytes)
  files = [f"{stem}.safetensors"]
  if len(shards) > 1:
    files = [
      f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
      for i in range(len(shards))
    ]
  for file, names in zip(files, shards, strict=True):
    yield from _write_file(folder / file, {n: tensors[n] for n in names})
  if len(shards) > 1:
    total = sum(_num_bytes(x) for x in tensors.values())
    file_of = {n: f for f, names in zip(files, shards) for n in names}
    index = dict(metadata=dict(total_size=total), weight_map=file_of)
    temporary = folder / f".{stem}.tmp"
    temporary.write_text(json.dumps(index, indent=2) + "\n")
    temporary.replace(folder / f"{stem}{INDEX}")


def _num_bytes(tensor: lazy_tensor.LazyTensor) -> int:
  return math.prod(tensor.shape) * tensor.dtype.itemsize


def _shards(
  tensors: Mapping[str, lazy_tensor.LazyTensor], shard_bytes: int
) -> list[list[str]]:
  shards: list[list[str]] = [[]]
  used = 0
  for name, tensor in tensors.items():
    if shards[-1] and used + _num_bytes(tensor) > shard_bytes:
      shards.append([])
      used = 0
    shards[-1].append(name)
    used += _num_bytes(tensor)
  return shards


def _write_file(path: pathlib.Path, tensors: Tensors) -> Iterator[str]:
  """Writes one file, which appears when it is complete."""
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  offset = 0
  for name, tensor in tensors.items():
    header[name] = dict(
      dtype=_NAMES[tensor.dtype],
      shape=list(tensor.shape),
      data_offsets=[offset, offset + _num_bytes(tensor)],
    )
    offset += _num_bytes(tensor)
  text = json.dumps(header).encode()
  # The format wants values to begin at a multiple of eight bytes.
  text += b" " * (-len(text) % 8)
  # A reader must never find a header whose values are not written yet.
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("wb") as file:
      file.write(len(text).to_bytes(8, "little") + text)
      for name, tensor in tensors.items():
        value = np.ascontiguousarray(tensor.read())
        assert (value.shape, value.dtype) == (tensor.shape, tensor.dtype), name
        file.write(value.reshape(-1).view(np.uint8).data)
        yield name
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)
