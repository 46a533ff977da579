"""Reads `.pth` files without PyTorch and without running what they contain.

Such a file is a zip archive: a pickle that describes tensors, and a member of
raw bytes for each storage. Only the few names that describe tensors are known
here; a pickle that asks for anything else is refused before it can act.
"""

import collections
from collections.abc import Mapping
from collections.abc import Sequence
import io
import pathlib
import pickle
from typing import Any, IO, NamedTuple
import zipfile

import ml_dtypes
import numpy as np

from videomla_jax.storage import lazy_tensor

_STORAGES = {
  "DoubleStorage": np.dtype(np.float64),
  "FloatStorage": np.dtype(np.float32),
  "HalfStorage": np.dtype(np.float16),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype(np.int64),
  "IntStorage": np.dtype(np.int32),
  "ShortStorage": np.dtype(np.int16),
  "CharStorage": np.dtype(np.int8),
  "ByteStorage": np.dtype(np.uint8),
  "BoolStorage": np.dtype(np.bool_),
}


class _Storage(NamedTuple):
  """The raw numbers that one or several tensors are views of."""

  dtype: np.dtype
  member: str


def open_archive(path: pathlib.Path) -> zipfile.ZipFile:
  """Opens the zip archive of a `.pth` file.

  Args:
    path: The file.

  Raises:
    ValueError: If the file is no archive of this kind.
  """
  try:
    archive = zipfile.ZipFile(path)
  except (zipfile.BadZipFile, OSError) as error:
    raise ValueError(
      f"source={str(path)!r} is damaged or an old kind of pickle ({error}); "
      "download it again, or save it as safetensors with PyTorch."
    ) from error
  return archive


def read_tensors(
  archive: zipfile.ZipFile, path: pathlib.Path
) -> Mapping[str, Any]:
  """Reads the pickled object, with lazy tensors in place of tensors.

  Args:
    archive: The archive, which must stay open as long as tensors are read.
    path: Path of the archive, for messages.

  Raises:
    ValueError: If it holds anything but tensors in dictionaries.
  """
  names = archive.namelist()
  found = [n for n in names if n.endswith("/data.pkl") or n == "data.pkl"]
  if len(found) != 1:
    raise ValueError(
      f"source={str(path)!r} holds no PyTorch checkpoint; give a file that "
      "torch.save wrote."
    )
  folder = found[0].removesuffix("data.pkl")
  order = f"{folder}byteorder"
  if order in names and archive.read(order) != b"little":
    raise ValueError(
      f"source={str(path)!r} has big-endian numbers; save it as safetensors."
    )
  with archive.open(found[0]) as file:
    try:
      loaded = _Unpickler(file, archive, folder, path).load()
    except (pickle.UnpicklingError, EOFError, zipfile.BadZipFile) as error:
      raise ValueError(f"source={str(path)!r} is damaged ({error}).") from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:
      raise ValueError(
        f"source={str(path)!r} has an unknown structure ({error}); save it as "
        "safetensors with PyTorch."
      ) from error
  if not isinstance(loaded, Mapping):
    raise ValueError(
      f"source={str(path)!r} holds a {type(loaded).__name__}; give a "
      "dictionary of tensors."
    )
  return loaded


class _Unpickler(pickle.Unpickler):
  """Builds dictionaries of tensors and refuses everything else."""

  def __init__(
    self,
    file: IO[bytes] | io.BufferedIOBase,
    archive: zipfile.ZipFile,
    folder: str,
    path: pathlib.Path,
  ) -> None:
    super().__init__(file)
    self._archive, self._folder, self._path = archive, folder, path

  def find_class(self, module: str, name: str) -> Any:
    """Returns what stands for one of the few names that are allowed."""
    # The inherited method imports whatever a pickle names, which is how a file
    # could run code.
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return self._tensor
    if (module, name) == ("torch._utils", "_rebuild_parameter"):
      # A parameter is its tensor here: gradients and hooks do not matter.
      return lambda data, *unused: data
    if module == "torch" and name in _STORAGES:
      return _STORAGES[name]
    raise ValueError(
      f"source={str(self._path)!r} asks to run {module}.{name}, which no "
      "checkpoint of weights needs; it was refused. Save the weights alone as "
      "safetensors."
    )

  def persistent_load(self, pid: Any) -> _Storage:
    """Returns the storage that a tensor refers to."""
    # The last two are device and size; what counts is the length of the member.
    kind, dtype, key, _, _ = pid
    if kind != "storage" or not isinstance(dtype, np.dtype):
      raise ValueError(
        f"source={str(self._path)!r} has an unknown kind of storage; save it "
        "as safetensors with PyTorch."
      )
    member = f"{self._folder}data/{key}"
    self._archive.getinfo(member)  # KeyError: reported as damage
    return _Storage(dtype, member)

  def _tensor(
    self,
    storage: _Storage,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    *unused: object,
  ) -> lazy_tensor.LazyTensor:
    """Makes a lazy tensor of a view of a storage.

    Args:
      storage: The raw numbers.
      offset: Index of the first number.
      shape: Shape of the tensor.
      strides: Distance of neighbours along each axis, in numbers.
      *unused: Gradients and hooks.
    """
    del unused
    sizes = tuple(shape)

    def read() -> np.ndarray:
      try:
        data = self._archive.read(storage.member)
      except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(
          f"source={str(self._path)!r} is damaged ({error}); download it again."
        ) from error
      flat = np.frombuffer(data, storage.dtype)
      last = offset + sum((n - 1) * s for n, s in zip(sizes, strides))
      if 0 in sizes:
        return np.empty(sizes, storage.dtype)
      # `as_strided` checks nothing: wrong strides would read foreign memory.
      if min(offset, *strides, 0) < 0 or last >= flat.size:
        raise ValueError(
          f"source={str(self._path)!r} is damaged: a tensor of {sizes} does "
          "not fit its storage."
        )
      steps = [s * flat.itemsize for s in strides]
      return np.lib.stride_tricks.as_strided(flat[offset:], sizes, steps)

    return lazy_tensor.LazyTensor(sizes, storage.dtype, read)
