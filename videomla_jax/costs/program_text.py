"""Reads the optimised HLO of a program for a GPU: what each kernel moves.

XLA's own cost analysis says nothing about programs for GPUs, so bytes are
counted from the sizes of operands and results in the text.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re

_ITEM = {
  **dict.fromkeys(("f64", "s64", "u64"), 8),
  **dict.fromkeys(("f32", "s32", "u32"), 4),
  **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
  **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
}
# What only names a value, or ends what another line has begun.
_FREE = {
  *("get-tuple-element", "tuple", "parameter", "bitcast", "constant"),
  *("fusion-done", "copy-done", "opt-barrier"),
}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a computation.

  Attributes:
    name: Name of the value.
    result: Its type.
    opcode: What computes it.
    rest: Operands and attributes, as they are written.
    is_root: Whether it is the result of its computation.
  """

  name: str
  result: str
  opcode: str
  rest: str
  is_root: bool

  @property
  def operands(self) -> list[str]:
    """Names of the operands."""
    return re.findall(r"%([\w.-]+)", self.rest.split(")")[0])

  def attribute(self, name: str) -> str:
    """Returns the word behind `name=`, or nothing."""
    found = re.search(rf"\b{name}=%?([\w.-]+)", self.rest)
    return found[1] if found else ""

  @property
  def is_free(self) -> bool:
    """Whether it moves nothing."""
    return self.opcode in _FREE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """The computations of a program.

  Attributes:
    entry: Name of the one that starts.
    computations: Lines by the name of the computation.
  """

  entry: str
  computations: Mapping[str, Sequence[Line]]

  def inside(self, line: Line) -> Sequence[Line]:
    """Returns what a fusion computes; nothing for other lines."""
    return self.computations.get(line.attribute("calls"), [])


def parse(text: str) -> Program:
  """Reads a program.

  Args:
    text: Optimised HLO, such as `compiled.as_text()`.
  """
  found: dict[str, list[Line]] = {}
  lines: list[Line] = []
  entry = ""
  for raw in text.splitlines():
    if head := _COMPUTATION.match(raw):
      lines = found.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif line := _LINE.match(raw):
      root, name, result, opcode, rest = line.groups()
      lines.append(Line(name, result, opcode, rest, bool(root)))
  return Program(entry=entry, computations=found)


def arguments(program: Program, body: str) -> frozenset[str]:
  """Names the values of a loop that are arguments of the program.

  Args:
    program: The program, whose first computation runs the loop.
    body: Name of the loop's body.
  """
  outside = {x.name: x for x in program.computations[program.entry]}
  loop = next(x for x in outside.values() if x.attribute("body") == body)
  start = outside[loop.operands[0]].operands
  lines = program.computations[body]
  carry = next(x.name for x in lines if x.opcode == "parameter")
  found: set[str] = set()
  for line in lines:
    if line.opcode == "get-tuple-element" and line.operands == [carry]:
      origin = outside.get(start[int(line.attribute("index"))])
      if origin is not None and origin.opcode == "parameter":
        found.add(line.name)
    elif line.opcode == "bitcast" and {*line.operands} <= found:
      found.add(line.name)
  return frozenset(found)


def sizes(result: str) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Yields dtype and sizes of every array of a type."""
  for dtype, lengths in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", result):
    if dtype in _ITEM:
      yield dtype, tuple(int(n) for n in lengths.split(",") if n)


def num_bytes(result: str) -> int:
  """Counts the bytes of all arrays of a type."""
  return sum(math.prod(n) * _ITEM[dtype] for dtype, n in sizes(result))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
  """What an operation reads of one operand.

  Attributes:
    name: Name of the operand.
    shape: Sizes of the whole operand.
    num_bytes: Bytes that are read.
    cut: Whether that is one layer of a stack.
  """

  name: str
  shape: tuple[int, ...]
  num_bytes: int
  cut: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
  """One kernel or copy.

  Attributes:
    line: The line that starts it.
    inside: What a fusion computes.
    reads: What it reads.
    shapes: Sizes of its results.
    num_bytes: Bytes that it reads and writes; workspaces are left out.
  """

  line: Line
  inside: Sequence[Line]
  reads: Sequence[Read]
  shapes: tuple[tuple[int, ...], ...]
  num_bytes: int


def kernels(
  program: Program, computation: str, *, static_slices: bool = False
) -> list[Kernel]:
  """Lists the kernels of one computation.

  Args:
    program: The program.
    computation: Its name.
    static_slices: Whether of an operand that a fusion only cuts pieces out of,
      at places that are known when it is compiled, only these count.
  """
  lines = program.computations[computation]
  types = {line.name: line.result for line in lines}
  found = []
  for line in lines:
    if line.is_free:
      continue
    inside = program.inside(line)
    written = _written(line)
    update = _in_place(inside)
    reads = list(_reads(line, types, inside, static_slices))
    moved = update[0] if update else num_bytes(written)
    found.append(
      Kernel(
        line=line,
        inside=inside,
        reads=reads,
        shapes=tuple(lengths for _, lengths in sizes(written)),
        num_bytes=moved + sum(r.num_bytes for r in reads),
      )
    )
  return found


def _written(line: Line) -> str:
  """Returns the type of what a line computes."""
  if line.opcode == "fusion-start":
    # (operands), result, context
    return line.result.split("), ", 1)[-1].rsplit(", ", 1)[0]
  # A library's second result is its workspace.
  is_library = line.opcode == "custom-call" or "kind=kCustom" in line.rest
  return re.split(r", [su]8\[", line.result)[0] if is_library else line.result


def _num_scalars(result: str) -> int:
  """Counts the numbers of all arrays of a type."""
  return sum(math.prod(n) for _, n in sizes(result))


def _behind_casts(users: Sequence[Line], inside: Sequence[Line]) -> list[Line]:
  """Replaces users that only change the dtype by their own users."""
  casts = [x for x in users if x.opcode == "convert"]
  behind = [y for x in casts for y in inside if x.name in y.operands]
  return [x for x in users if x not in casts] + behind


# Which operand is written into which other one, in place.
_UPDATES = {"scatter": 2, "dynamic-update-slice": 1}


def _in_place(inside: Sequence[Line]) -> tuple[int, str] | None:
  """Finds an update in place: bytes of what is new, and where it goes."""
  for line in inside:
    if line.is_root and line.opcode in _UPDATES:
      types = {x.name: x.result for x in inside}
      new = types[line.operands[_UPDATES[line.opcode]]]
      return num_bytes(new), line.operands[0]
  return None


def _reads(
  line: Line,
  types: Mapping[str, str],
  inside: Sequence[Line],
  static_slices: bool,
) -> Iterator[Read]:
  """Yields what is read of each operand."""
  update = _in_place(inside)
  places = {
    int(p.rest.split(")")[0]): p.name for p in inside if p.opcode == "parameter"
  }
  for index, operand in enumerate(line.operands):
    place = places.get(index)
    users = [x for x in inside if place in x.operands]
    if static_slices:
      users = _behind_casts(users, inside)
    if update and place == update[1]:
      continue
    whole = types.get(operand, "")
    # An index is an operand of a slice, too, but not its first.
    cut = [
      x for x in users if x.opcode == "dynamic-slice" and place == x.operands[0]
    ]
    pieces = cut
    if static_slices:
      pieces = [x for x in users if x in cut or x.opcode == "slice"]
    read = num_bytes(whole)
    if users and pieces == users:
      # Of a stack, one layer is read, in the dtype of the stack.
      scalars = sum(_num_scalars(x.result) for x in users)
      read = min(read, scalars * read // max(_num_scalars(whole), 1))
    for _, shape in list(sizes(whole))[:1]:
      yield Read(
        name=operand,
        shape=shape,
        num_bytes=read,
        cut=bool(users) and cut == users,
      )
