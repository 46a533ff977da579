"""What the names in a PyTorch checkpoint stand for.

Names that describe tensors become tokens of our own, and a call of one of them
is checked argument by argument. Names of what else training code saves (its
arguments, its random state) stand for objects that do nothing. Any other name
is refused: no checkpoint of weights needs it.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import ml_dtypes
import numpy as np

from videomla_jax.storage import pickle_machine
from videomla_jax.storage import printable

DTYPES = {
  "float64": np.dtype(np.float64),
  "float32": np.dtype(np.float32),
  "float16": np.dtype(np.float16),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  "int64": np.dtype(np.int64),
  "int32": np.dtype(np.int32),
  "int16": np.dtype(np.int16),
  "int8": np.dtype(np.int8),
  "uint8": np.dtype(np.uint8),
  "bool": np.dtype(np.bool_),
  "complex64": np.dtype(np.complex64),
  "complex128": np.dtype(np.complex128),
  # Codes of quantised weights, which are refused later on.
  "float8_e4m3fn": np.dtype(np.uint8),
  "float8_e5m2": np.dtype(np.uint8),
}

_STORAGES = {
  "DoubleStorage": "float64",
  "FloatStorage": "float32",
  "HalfStorage": "float16",
  "BFloat16Storage": "bfloat16",
  "LongStorage": "int64",
  "IntStorage": "int32",
  "ShortStorage": "int16",
  "CharStorage": "int8",
  "ByteStorage": "uint8",
  "BoolStorage": "bool",
  "ComplexFloatStorage": "complex64",
  "ComplexDoubleStorage": "complex128",
  "UntypedStorage": "uint8",
}

# What training code saves beside weights, as objects that do nothing here.
_INERT_PACKAGES = frozenset(
  (
    *("argparse", "datetime", "easydict", "ml_collections", "omegaconf"),
    *("pathlib", "typing", "yacs"),
  )
)
_BUILTINS = (
  *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset"),
  *("int", "list", "object", "range", "set", "slice", "str", "tuple"),
  *("long", "unicode", "xrange"),  # names of Python 2 in old protocols
)
_INERT = frozenset(
  [(module, x) for module in ("builtins", "__builtin__") for x in _BUILTINS]
  + [("torch", x) for x in ("device", "Tensor", "Generator", *DTYPES)]
  + [("torch", x) for x in ("float", "half", "double", "long", "int", "short")]
  + [("torch.nn.parameter", x) for x in ("Parameter", "Buffer")]
  + [("torch.torch_version", "TorchVersion"), ("types", "SimpleNamespace")]
  + [("numpy", "dtype"), ("numpy", "ndarray"), ("_codecs", "encode")]
  + [
    (f"numpy.{core}.multiarray", x)
    for core in ("core", "_core")
    for x in ("scalar", "_reconstruct")
  ]
  + [(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")]
  + [(module, "_reconstructor") for module in ("copyreg", "copy_reg")]
)


class ForeignNameError(ValueError):
  """A name that no checkpoint of weights needs, which was not looked up."""


@dataclasses.dataclass(frozen=True, slots=True)
class StorageKind:
  """Type of the numbers of a storage.

  Attributes:
    dtype: Key of `DTYPES`.
  """

  dtype: str


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
  """The raw numbers that one or several tensors are views of.

  Attributes:
    dtype: Key of `DTYPES`.
    key: Name of the member of the archive.
    count: Numbers in it.
  """

  dtype: str
  key: str
  count: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Name:
  """A name that may be called.

  Attributes:
    module: Module as the pickle has it.
    name: Name in the module.
  """

  module: str
  name: str

  def __str__(self) -> str:
    return f"{self.module}.{self.name}"


type MakeTensor = Callable[
  [Storage, int, tuple[int, ...], tuple[int, ...], str], Any
]


class TorchNames:
  """Says what stands for names, calls and storages, see `pickle_machine`."""

  def __init__(
    self,
    make_storage: Callable[[StorageKind, str, int], Storage],
    make_tensor: MakeTensor,
    tensor: type,
  ) -> None:
    """Notes how tensors are made.

    Args:
      make_storage: Returns the storage of a kind, a key and a size.
      make_tensor: Returns the tensor of a storage, offset, shape, strides and
        key of `DTYPES`.
      tensor: Class of such tensors.
    """
    self._make_storage, self._make_tensor = make_storage, make_tensor
    self._tensor = tensor

  def find(self, module: str, name: str) -> StorageKind | _Name:
    """Returns what stands for one of the names that are known.

    Raises:
      ForeignNameError: For every other name.
    """
    if module in ("torch", "torch.storage") and name in _STORAGES:
      return StorageKind(_STORAGES[name])
    known = (module, name) in _CALLS or (module, name) in _INERT
    if known or module.split(".")[0] in _INERT_PACKAGES:
      return _Name(module, name)
    raise ForeignNameError(printable.text(f"{module}.{name}"))

  def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
    """Returns what stands for the result of a call."""
    if not isinstance(function, _Name):
      raise pickle_machine.PickleError("it calls what is no function")
    known = _CALLS.get((function.module, function.name))
    if known is None:
      return pickle_machine.Inert(printable.text(function))
    try:
      return known(self, *arguments)
    except TypeError as error:
      raise pickle_machine.PickleError(
        f"it calls {function} with other arguments than PyTorch does"
      ) from error

  def stored(self, identity: Any) -> Storage:
    """Returns the storage that a tensor refers to."""
    if type(identity) is not tuple or len(identity) != 5:
      raise pickle_machine.PickleError("a storage is not described")
    # The device on which it was does not matter.
    word, kind, key, _, count = identity
    if word != "storage" or not isinstance(kind, StorageKind):
      raise pickle_machine.PickleError("a storage is of an unknown kind")
    if type(key) is not str or type(count) is not int:
      raise pickle_machine.PickleError("a storage has no name or size")
    return self._make_storage(kind, key, count)

  def drops_state(self, value: Any) -> bool:
    """Says whether a value is a tensor, whose state are gradients and hooks."""
    return isinstance(value, self._tensor)

  def _rebuild_tensor(
    self,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    *unused: Any,
    dtype: str = "",
  ) -> Any:
    """Makes a tensor; gradients, hooks and metadata are dropped."""
    del unused
    numbers = [offset, *_integers(shape), *_integers(strides)]
    if not isinstance(storage, Storage) or type(offset) is not int:
      raise TypeError("no storage or offset")
    if min(numbers) < 0 or len(shape) != len(strides):
      raise pickle_machine.PickleError("a tensor does not fit its storage")
    return self._make_tensor(
      storage, offset, shape, strides, dtype or storage.dtype
    )

  def _rebuild_tensor_v3(
    self,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    *unused: Any,
  ) -> Any:
    """Makes a tensor of a storage that does not know its type."""
    del requires_grad, hooks, unused
    if not isinstance(dtype, _Name) or dtype.name not in DTYPES:
      raise pickle_machine.PickleError("a tensor is of an unknown type")
    return self._rebuild_tensor(
      storage, offset, shape, strides, dtype=dtype.name
    )

  def _rebuild_from_type(
    self, function: Any, kind: Any, arguments: Any, *unused: Any
  ) -> Any:
    """Makes a tensor that had attributes, which are dropped."""
    del kind, unused
    # Only one level: a call that calls itself would never end.
    if not isinstance(function, _Name) or type(arguments) is not tuple:
      raise TypeError("no function")
    if not function.name.startswith(("_rebuild_tensor", "_rebuild_parameter")):
      raise TypeError("another function")
    return self.call(function, arguments)

  def _parameter(self, data: Any, *unused: Any) -> Any:
    """Returns the tensor of a parameter; gradients and hooks are dropped."""
    del unused
    if not isinstance(data, self._tensor):
      raise TypeError("no tensor")
    return data

  def _ordered_dict(self, pairs: Any = ()) -> dict[Any, Any]:
    """Makes a dictionary, from nothing or from pairs."""
    if type(pairs) not in (list, tuple):
      raise TypeError("no pairs")
    for pair in pairs:
      if type(pair) not in (list, tuple) or len(pair) != 2:
        raise TypeError("no pair")
    return {k: v for k, v in pairs if pickle_machine.is_key(k)}

  def _default_dict(self, *factory: Any) -> dict[Any, Any]:
    del factory  # nothing is asked for that is not there
    return {}

  def _size(self, shape: Any) -> tuple[int, ...]:
    return tuple(_integers(shape))


def _integers(values: Any) -> tuple[int, ...]:
  """Returns the values if they are a few integers."""
  if type(values) not in (tuple, list) or len(values) > 16:
    raise TypeError("no shape")
  if any(type(x) is not int for x in values):
    raise TypeError("no integers")
  return tuple(values)


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
  ("collections", "OrderedDict"): TorchNames._ordered_dict,
  ("collections", "defaultdict"): TorchNames._default_dict,
  ("torch", "Size"): TorchNames._size,
  ("torch._utils", "_rebuild_tensor"): TorchNames._rebuild_tensor,
  ("torch._utils", "_rebuild_tensor_v2"): TorchNames._rebuild_tensor,
  ("torch._utils", "_rebuild_tensor_v3"): TorchNames._rebuild_tensor_v3,
  ("torch._utils", "_rebuild_parameter"): TorchNames._parameter,
  ("torch._utils", "_rebuild_parameter_with_state"): TorchNames._parameter,
  ("torch._tensor", "_rebuild_from_type_v2"): TorchNames._rebuild_from_type,
}
