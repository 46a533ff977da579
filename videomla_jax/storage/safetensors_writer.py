"""Writes tensors to safetensors files, in shards of bounded size."""

from collections.abc import Iterator
from collections.abc import Mapping
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from videomla_jax.storage import atomic
from videomla_jax.storage import lazy_tensor
from videomla_jax.storage import safetensors_files

_NAMES = {dtype: name for name, dtype in safetensors_files.DTYPES.items()}


def write_safetensors(
  path: str | os.PathLike[str],
  tensors: Mapping[str, lazy_tensor.LazyTensor],
  *,
  stem: str = "diffusion_pytorch_model",
  shard_bytes: int = 5 * 10**9,
  metadata: Mapping[str, str] | None = None,
) -> Iterator[str]:
  """Writes tensors one by one, each file complete or not at all.

  Args:
    path: Folder of the result: `STEM.safetensors`, or shards and their index
      above `shard_bytes`.
    tensors: What to write; one at a time is read.
    stem: Beginning of the names of the files.
    shard_bytes: Upper bound of a file's size, unless one tensor is larger.
    metadata: Free text to keep in every file, and in the index.

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
    own = {n: tensors[n] for n in names}
    yield from _write_file(folder / file, own, metadata or {})
  if len(shards) > 1:
    total = sum(_num_bytes(x) for x in tensors.values())
    file_of = {n: f for f, names in zip(files, shards) for n in names}
    about = {"total_size": total, **(metadata or {})}
    index = dict(metadata=about, weight_map=file_of)
    # The index comes last, so that it never names a shard that is not there.
    atomic.write_text(
      folder / f"{stem}{safetensors_files.INDEX}",
      json.dumps(index, indent=2) + "\n",
    )


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


def _write_file(
  path: pathlib.Path,
  tensors: safetensors_files.Tensors,
  metadata: Mapping[str, str],
) -> Iterator[str]:
  """Writes one file, which appears when it is complete."""
  # Versions of transformers refuse a file that names no framework here.
  header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
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
  with atomic.replacing(path) as temporary, temporary.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for name, tensor in tensors.items():
      value = np.ascontiguousarray(tensor.read())
      assert (value.shape, value.dtype) == (tensor.shape, tensor.dtype), name
      # NumPy gives no buffer of bfloat16, and `tobytes` would copy the tensor.
      file.write(value.reshape(-1).view(np.uint8).data)
      yield name
