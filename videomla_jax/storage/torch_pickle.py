"""Reads `.pth` files without PyTorch and without running what they contain.

Such a file is a zip archive (`torch_archive`): a pickle that describes tensors
(`pickle_machine`, `torch_names`), and a member of raw bytes for each storage.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from videomla_jax.storage import foreign_files
from videomla_jax.storage import lazy_tensor
from videomla_jax.storage import pickle_machine
from videomla_jax.storage import torch_archive
from videomla_jax.storage import torch_names

_MOST_PICKLE = 64 * 2**20  # bytes; 1,100 tensors take 0.3 MB
MOST_TENSORS = 2**17
_WEIGHTS_ALONE = "save the weights alone as safetensors with PyTorch"


def read_tensors(archive: torch_archive.TorchArchive) -> Mapping[Any, Any]:
  """Reads the pickled object, with lazy tensors in place of tensors.

  Args:
    archive: The archive, which must stay open as long as tensors are read.

  Raises:
    BadFileError: If it holds anything but tensors in dictionaries.
  """
  path = archive.path
  names = archive.names()
  found = [n for n in names if n.endswith("/data.pkl") or n == "data.pkl"]
  if len(found) != 1:
    raise foreign_files.BadFileError(
      f"source={str(path)!r} holds no PyTorch checkpoint; give a file that "
      "torch.save wrote."
    )
  folder = found[0].removesuffix("data.pkl")
  order = f"{folder}byteorder"
  if (
    order in names
    and archive.read(order, size=min(archive.size(order), 16)) != b"little"
  ):
    raise foreign_files.BadFileError(
      f"source={str(path)!r} has big-endian numbers; save it as safetensors."
    )
  with foreign_files.reading(path, way_out=_WEIGHTS_ALONE):
    if archive.size(found[0]) > _MOST_PICKLE:
      raise ValueError(f"its pickle has {archive.size(found[0])} bytes")
    try:
      loaded = _Reader(archive, folder).load(archive.read(found[0]))
    except torch_names.ForeignNameError as error:
      raise foreign_files.BadFileError(
        f"source={str(path)!r} asks to run {error}, which no checkpoint of "
        "weights needs; it was refused. Save the weights alone as safetensors."
      ) from error
  if not isinstance(loaded, dict):
    raise foreign_files.BadFileError(
      f"source={str(path)!r} holds a {_kind(loaded)}; give a dictionary of "
      "tensors."
    )
  return loaded


def _kind(value: Any) -> str:
  """Returns what a value is called."""
  if isinstance(value, lazy_tensor.LazyTensor):
    return "tensor"
  if isinstance(value, pickle_machine.Inert):
    return value.name
  return type(value).__name__


class _Reader:
  """Makes the tensors of one archive."""

  def __init__(self, archive: torch_archive.TorchArchive, folder: str) -> None:
    self._archive, self._folder = archive, folder
    self._tensors = 0

  def load(self, described: bytes) -> Any:
    """Returns what a pickle describes."""
    names = torch_names.TorchNames(
      self._storage, self._tensor, lazy_tensor.LazyTensor
    )
    return pickle_machine.load(described, names)

  def _storage(
    self, kind: torch_names.StorageKind, key: str, count: int
  ) -> torch_names.Storage:
    """Makes a storage if the archive holds as many bytes as it is said to."""
    member = f"{self._folder}data/{key}"
    needed = count * torch_names.DTYPES[kind.dtype].itemsize
    if self._archive.size(member) != needed:
      raise pickle_machine.PickleError(
        f"a storage has {self._archive.size(member)} bytes and not {needed}"
      )
    return torch_names.Storage(kind.dtype, member, count)

  def _tensor(
    self,
    storage: torch_names.Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: str,
  ) -> lazy_tensor.LazyTensor:
    """Makes a lazy tensor of a view of a storage, which it fits.

    Args:
      storage: The raw numbers.
      offset: Index of the first number.
      shape: Shape of the tensor.
      strides: Distance of neighbours along each axis, in numbers.
      dtype: Key of `torch_names.DTYPES`.
    """
    self._tensors += 1
    if self._tensors > MOST_TENSORS:
      raise pickle_machine.PickleError(
        f"it has more than {MOST_TENSORS} tensors"
      )
    kind = torch_names.DTYPES[dtype]
    size = torch_names.DTYPES[storage.dtype].itemsize * storage.count
    span = (
      0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides))
    )
    # `as_strided` checks nothing: wrong strides would read foreign memory.
    if (offset + span) * kind.itemsize > size:
      raise pickle_machine.PickleError(
        f"a tensor of {shape} does not fit its storage"
      )
    archive, key = self._archive, storage.key

    def read() -> np.ndarray:
      if not span:
        return np.empty(shape, kind)
      data = archive.read(
        key, start=offset * kind.itemsize, size=span * kind.itemsize
      )
      flat = np.frombuffer(data, kind)
      steps = [s * kind.itemsize for s in strides]
      return np.lib.stride_tricks.as_strided(flat, shape, steps)

    return lazy_tensor.LazyTensor(
      tuple(shape), kind, read, span * kind.itemsize
    )
