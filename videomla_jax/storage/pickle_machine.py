"""Reads pickles by an own interpreter that can build plain values only.

A pickle is a program for a machine with a stack. Python's own reader imports
what the program names and calls it. This machine knows the operations below and
no others; a name stands for itself, and what a call, a name or a stored object
becomes is decided by the `Names` that it is given. It imports nothing, calls
nothing of the program's choice and sets no attribute, so that the worst that a
program can do is to use time and memory, which are counted.
"""

from collections.abc import Callable
import dataclasses
import pickletools
from typing import Any, Protocol, runtime_checkable

# Operations of one program. The largest networks have 2,000 tensors of 40
# operations each, and their optimisers three times as many.
MOST_STEPS = 2**20
_MOST_MARKS = 1000  # values that are begun and not finished
_MOST_PROTOCOL = 5
# Python finds keys of one hash one by one, and hashes of numbers can be chosen.
_LARGEST_KEY = 2**60
_MOST_BITS = 1024  # of an integer


@dataclasses.dataclass(frozen=True, slots=True)
class Inert:
  """Stands for an object that is not needed, and can do nothing.

  Attributes:
    name: Module and name of what would have made it.
  """

  name: str


@runtime_checkable
class Names(Protocol):
  """Says what stands for the names and objects of a program."""

  def find(self, module: str, name: str) -> Any:
    """Returns what stands for a name.

    Args:
      module: Module that the program would import.
      name: Name in the module.
    """

  def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
    """Returns what stands for the result of a call.

    Args:
      function: What `find` returned, or any other value.
      arguments: Values of the program.
    """

  def stored(self, identity: Any) -> Any:
    """Returns what stands for an object that lies outside of the pickle.

    Args:
      identity: What the program says of the object.
    """

  def drops_state(self, value: Any) -> bool:
    """Says whether a value may be given a state, which is then dropped."""


class PickleError(ValueError):
  """A pickle that is damaged, too large, or asks for what is not known."""


def load(data: bytes, names: Names) -> Any:
  """Runs a pickle and returns the value that it builds.

  Args:
    data: The pickle.
    names: What stands for names, calls and stored objects.

  Raises:
    PickleError: If an operation is unknown, gets values of the wrong types, or
      the program is too long.
  """
  machine = _Machine(names)
  # `genops` cuts the program into operations and runs none of them.
  for operation, argument, _ in pickletools.genops(data):
    if operation.name == "STOP":
      return machine.pop()
    machine.step(operation.name, argument)
  raise PickleError("it has no end")


class _Machine:
  """The stack, the marks on it, and the memo."""

  def __init__(self, names: Names) -> None:
    self._names = names
    self._stack: list[Any] = []
    self._below: list[list[Any]] = []  # stacks under the marks
    # A dictionary, since a list would be as long as the largest index.
    self._memo: dict[int, Any] = {}
    self._steps = 0

  def step(self, name: str, argument: Any) -> None:
    """Runs one operation of the program.

    Args:
      name: Name of the operation, as `pickletools` has it.
      argument: What follows it in the pickle, or None.

    Raises:
      PickleError: If the operation is not known, or asks for too much.
    """
    self._spend(1)
    if name in _CONSTANTS:
      self._stack.append(_CONSTANTS[name])
    elif name in _LITERALS:
      self._literal(argument)
    elif name in _OPERATIONS:
      _OPERATIONS[name](self, argument)
    elif name not in _IGNORED:
      raise PickleError(f"the operation {name} is not known here")

  def pop(self) -> Any:
    """Takes the topmost value."""
    if not self._stack:
      raise PickleError("its stack is empty")
    return self._stack.pop()

  def _spend(self, steps: int) -> None:
    """Counts operations, and values that are copied by one operation."""
    self._steps += steps
    if self._steps > MOST_STEPS:
      raise PickleError(f"it has more than {MOST_STEPS} operations")

  def _literal(self, value: Any) -> None:
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
      raise PickleError(f"an integer has {value.bit_length()} bits")
    self._stack.append(value)

  def _top(self, *kinds: type) -> Any:
    """Returns the topmost value, which stays, if it is of these types."""
    if not self._stack or not isinstance(self._stack[-1], kinds):
      raise PickleError("a value is filled that cannot be")
    return self._stack[-1]

  def _protocol(self, version: int) -> None:
    if version > _MOST_PROTOCOL:
      raise PickleError(f"its protocol {version} is not known here")

  def _mark(self, unused: None) -> None:
    if len(self._below) >= _MOST_MARKS:
      raise PickleError("its values are nested too deeply")
    self._below.append(self._stack)
    self._stack = []

  def _since_mark(self) -> list[Any]:
    """Takes all values above the last mark, and the mark."""
    if not self._below:
      raise PickleError("a mark is missing")
    values, self._stack = self._stack, self._below.pop()
    return values

  def _pop(self, unused: None) -> None:
    if self._stack:
      self._stack.pop()
    else:
      self._since_mark()

  def _pop_mark(self, unused: None) -> None:
    self._since_mark()

  def _duplicate(self, unused: None) -> None:
    self._stack.append(self._top(object))

  def _put(self, index: int) -> None:
    self._memo[index] = self._top(object)

  def _memoize(self, unused: None) -> None:
    self._memo[len(self._memo)] = self._top(object)

  def _get(self, index: int) -> None:
    if index not in self._memo:
      raise PickleError(f"it uses the value {index} before it is there")
    self._stack.append(self._memo[index])

  def _tuple(self, unused: None) -> None:
    values = self._since_mark()
    self._stack.append(tuple(values))

  def _tuple_of(self, count: int) -> None:
    values = [self.pop() for _ in range(count)]
    self._stack.append(tuple(reversed(values)))

  def _list(self, unused: None) -> None:
    values = self._since_mark()
    self._stack.append(values)

  def _dict(self, unused: None) -> None:
    values = self._since_mark()
    self._stack.append({})
    self._fill(values)

  def _append(self, unused: None) -> None:
    value = self.pop()
    self._extend([value])

  def _appends(self, unused: None) -> None:
    self._extend(self._since_mark())

  def _extend(self, values: list[Any]) -> None:
    target = self._top(list, Inert)
    # What an object that stands for nothing holds is not kept.
    if isinstance(target, list):
      target.extend(values)

  def _set_item(self, unused: None) -> None:
    value, key = self.pop(), self.pop()
    self._fill([key, value])

  def _set_items(self, unused: None) -> None:
    self._fill(self._since_mark())

  def _fill(self, values: list[Any]) -> None:
    """Puts keys and values, one after the other, into the topmost value."""
    target = self._top(dict, Inert)
    if len(values) % 2:
      raise PickleError("a key has no value")
    if isinstance(target, dict):
      target.update(
        (k, v) for k, v in zip(values[::2], values[1::2]) if is_key(k)
      )

  def _empty_list(self, unused: None) -> None:
    self._stack.append([])

  def _empty_dict(self, unused: None) -> None:
    self._stack.append({})

  def _empty_set(self, unused: None) -> None:
    # No network has sets, so what is in them is not kept.
    self._stack.append(Inert("set"))

  def _add_items(self, unused: None) -> None:
    self._since_mark()
    self._top(Inert)

  def _frozen_set(self, unused: None) -> None:
    self._since_mark()
    self._stack.append(Inert("frozenset"))

  def _global(self, argument: str) -> None:
    # `genops` has put one blank between module and name.
    module, _, name = argument.partition(" ")
    self._stack.append(self._names.find(module, name))

  def _stack_global(self, unused: None) -> None:
    name, module = self.pop(), self.pop()
    if not isinstance(name, str) or not isinstance(module, str):
      raise PickleError("a name is no text")
    self._stack.append(self._names.find(module, name))

  def _reduce(self, unused: None) -> None:
    arguments, function = self.pop(), self.pop()
    self._call(function, arguments)

  def _new_object_ex(self, unused: None) -> None:
    _, arguments, kind = self.pop(), self.pop(), self.pop()
    self._call(kind, arguments)

  def _object(self, unused: None) -> None:
    kind, *arguments = self._since_mark() or [None]
    self._call(kind, tuple(arguments))

  def _instance(self, argument: str) -> None:
    arguments = self._since_mark()
    self._global(argument)
    self._call(self.pop(), tuple(arguments))

  def _call(self, function: Any, arguments: Any) -> None:
    # Classes derived from tuples stand for other things here.
    if type(arguments) is not tuple:
      raise PickleError("a call has no list of arguments")
    # Whatever a call copies is counted, or one operation could be large.
    self._spend(sum(len(x) for x in arguments if isinstance(x, (list, tuple))))
    self._stack.append(self._names.call(function, arguments))

  def _build(self, unused: None) -> None:
    # State dictionaries carry metadata, and objects their fields. Neither is
    # needed for weights, so a state is dropped and nothing is ever set.
    self.pop()
    target = self._top(object)
    if not (
      isinstance(target, (dict, Inert)) or self._names.drops_state(target)
    ):
      raise PickleError("a state is given to what has none")

  def _persistent(self, unused: None) -> None:
    self._stack.append(self._names.stored(self.pop()))


def is_key(key: Any) -> bool:
  """Says whether an entry is kept: weights are named by texts or numbers.

  Args:
    key: Key of the entry.
  """
  if isinstance(key, (str, Inert)) or key is None:
    return True
  return isinstance(key, int) and abs(key) < _LARGEST_KEY


_CONSTANTS = {
  "NONE": None,
  "NEWTRUE": True,
  "NEWFALSE": False,
  "EMPTY_TUPLE": (),
}

# Operations whose argument is the value.
_LITERALS = frozenset(
  (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
  )
)
_IGNORED = frozenset(("FRAME",))

_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
  "PROTO": _Machine._protocol,
  "MARK": _Machine._mark,
  "POP": _Machine._pop,
  "POP_MARK": _Machine._pop_mark,
  "DUP": _Machine._duplicate,
  "PUT": _Machine._put,
  "BINPUT": _Machine._put,
  "LONG_BINPUT": _Machine._put,
  "MEMOIZE": _Machine._memoize,
  "GET": _Machine._get,
  "BINGET": _Machine._get,
  "LONG_BINGET": _Machine._get,
  "TUPLE": _Machine._tuple,
  "TUPLE1": lambda machine, _: machine._tuple_of(1),
  "TUPLE2": lambda machine, _: machine._tuple_of(2),
  "TUPLE3": lambda machine, _: machine._tuple_of(3),
  "EMPTY_LIST": _Machine._empty_list,
  "LIST": _Machine._list,
  "APPEND": _Machine._append,
  "APPENDS": _Machine._appends,
  "EMPTY_DICT": _Machine._empty_dict,
  "DICT": _Machine._dict,
  "SETITEM": _Machine._set_item,
  "SETITEMS": _Machine._set_items,
  "EMPTY_SET": _Machine._empty_set,
  "ADDITEMS": _Machine._add_items,
  "FROZENSET": _Machine._frozen_set,
  "GLOBAL": _Machine._global,
  "STACK_GLOBAL": _Machine._stack_global,
  "REDUCE": _Machine._reduce,
  "NEWOBJ": _Machine._reduce,
  "NEWOBJ_EX": _Machine._new_object_ex,
  "OBJ": _Machine._object,
  "INST": _Machine._instance,
  "BUILD": _Machine._build,
  "BINPERSID": _Machine._persistent,
}
