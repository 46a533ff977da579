"""Counts what the loop over layers of a compiled program reads and writes.

Products and attention have to move their operands; what is moved beside them
is the price of how a program is written, docs/kernels.md. XLA's own cost
analysis says nothing about programs for GPUs, so the optimised HLO is read.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math
import re
from typing import NamedTuple

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
_PRODUCT = re.compile(r'cublas|\bdot\(|"__triton_(nested_)?gemm')
_ATTENTION = re.compile(r"fmha|mosaic_gpu|xla\.gpu\.triton")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
  """One kernel or copy of the loop.

  Attributes:
    name: Its name in the program.
    kind: "product", "attention", "weights" (all that it reads is cut out of
      stacks of weights, however it changes them), "entries" (likewise of the
      cache or the text), "concatenation" (a fusion that ends with one) or
      "other".
    shapes: Sizes of its results.
    num_bytes: Bytes that it reads and writes; workspaces are left out.
  """

  name: str
  kind: str
  shapes: tuple[tuple[int, ...], ...]
  num_bytes: int


@dataclasses.dataclass(frozen=True)
class _Line:
  """One line of a computation."""

  name: str
  result: str
  opcode: str
  rest: str
  is_root: bool

  @property
  def operands(self) -> list[str]:
    return re.findall(r"%([\w.-]+)", self.rest.split(")")[0])

  def attribute(self, name: str) -> str:
    found = re.search(rf"\b{name}=%?([\w.-]+)", self.rest)
    return found[1] if found else ""


def _computations(text: str) -> dict[str, list[_Line]]:
  """Reads the computations of a module by their names."""
  found: dict[str, list[_Line]] = {}
  lines: list[_Line] = []
  for raw in text.splitlines():
    if head := _COMPUTATION.match(raw):
      lines = found.setdefault(head[1], [])
    elif line := _LINE.match(raw):
      root, name, result, opcode, rest = line.groups()
      lines.append(_Line(name, result, opcode, rest, bool(root)))
  return found


def _sizes(result: str) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Yields dtype and sizes of every array of a type."""
  for dtype, sizes in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", result):
    if dtype in _ITEM:
      yield dtype, tuple(int(n) for n in sizes.split(",") if n)


def _bytes(result: str) -> int:
  return sum(math.prod(sizes) * _ITEM[dtype] for dtype, sizes in _sizes(result))


def _written(line: _Line) -> str:
  """Returns the type of what a line computes."""
  if line.opcode == "fusion-start":
    # (operands), result, context
    return line.result.split("), ", 1)[-1].rsplit(", ", 1)[0]
  # A library's second result is its workspace.
  is_library = line.opcode == "custom-call" or "kind=kCustom" in line.rest
  return line.result.split(", s8[")[0] if is_library else line.result


# Which operand is written into which other one, in place.
_UPDATES = {"scatter": 2, "dynamic-update-slice": 1}


def _in_place(inside: Sequence[_Line]) -> tuple[int, str] | None:
  """Finds an update in place: bytes of what is new, and where it goes."""
  for line in inside:
    if line.is_root and line.opcode in _UPDATES:
      types = {x.name: x.result for x in inside}
      new = types[line.operands[_UPDATES[line.opcode]]]
      return _bytes(new), line.operands[0]
  return None


class _Read(NamedTuple):
  """What an operation reads of one operand; `cut` if it is one layer of it."""

  shape: tuple[int, ...]
  num_bytes: int
  cut: bool


def _reads(
  line: _Line, types: dict[str, str], inside: Sequence[_Line]
) -> Iterator[_Read]:
  """Yields what is read of each operand."""
  update = _in_place(inside)
  places = {
    int(p.rest.split(")")[0]): p.name for p in inside if p.opcode == "parameter"
  }
  for index, operand in enumerate(line.operands):
    users = [x for x in inside if places.get(index) in x.operands]
    if update and places.get(index) == update[1]:
      continue
    # An index is an operand of a slice, too, but not its first.
    cut = [
      x
      for x in users
      if x.opcode == "dynamic-slice" and places[index] == x.operands[0]
    ]
    whole = types.get(operand, "")
    for _, shape in list(_sizes(whole))[:1]:
      if users and cut == users:
        # Of a stack, one layer is read.
        layer = sum(_bytes(x.result) for x in users)
        yield _Read(shape, layer, True)
      else:
        yield _Read(shape, _bytes(whole), False)


# A stack of weights has axes of layers, inputs and outputs, and one of biases
# and gains two; stacks of entries have more.
_WEIGHT_RANKS = (2, 3)


def _kind(line: _Line, inside: Sequence[_Line], reads: Sequence[_Read]) -> str:
  """Says what an operation does."""
  words = line.rest + "\n".join(f"{x.opcode}({x.rest}" for x in inside)
  if _PRODUCT.search(words):
    return "product"
  if _ATTENTION.search(words):
    return "attention"
  arrays = [r for r in reads if r.shape]
  if arrays and all(r.cut for r in arrays):
    weights = {len(r.shape) for r in arrays} <= {*_WEIGHT_RANKS}
    return "weights" if weights else "entries"
  root = [x.opcode for x in inside if x.is_root]
  return "concatenation" if "concatenate" in (line.opcode, *root) else "other"


def layer_loops(text: str) -> list[list[Operation]]:
  """Returns the operations of every innermost loop that runs layers.

  Args:
    text: Optimised HLO of a program for a GPU.
  """
  computations = _computations(text)
  bodies = {
    line.attribute("body")
    for lines in computations.values()
    for line in lines
    if line.opcode == "while"
  }
  loops = []
  for body in sorted(bodies):
    lines = computations[body]
    if any(line.opcode == "while" for line in lines):
      continue
    found = _operations(lines, computations)
    if any(x.kind == "attention" for x in found):
      loops.append(found)
  return loops


def _operations(
  lines: Sequence[_Line], computations: dict[str, list[_Line]]
) -> list[Operation]:
  """Reads the operations of one computation."""
  types = {line.name: line.result for line in lines}
  found = []
  for line in lines:
    if line.opcode in _FREE:
      continue
    inside = computations.get(line.attribute("calls"), [])
    written = _written(line)
    update = _in_place(inside)
    reads = list(_reads(line, types, inside))
    moved = update[0] if update else _bytes(written)
    moved += sum(r.num_bytes for r in reads)
    shapes = tuple(sizes for _, sizes in _sizes(written))
    found.append(
      Operation(
        name=line.name,
        kind=_kind(line, inside, reads),
        shapes=shapes,
        num_bytes=moved,
      )
    )
  return found


def beside_products(loop: Sequence[Operation]) -> int:
  """Counts the bytes that a layer moves beside products and attention.

  Args:
    loop: Operations of one layer.
  """
  kinds = ("product", "attention")
  return sum(x.num_bytes for x in loop if x.kind not in kinds)


def large(
  loop: Sequence[Operation], kind: str, *, least: int = 2**20
) -> dict[tuple[int, ...], int]:
  """Lists what one kind of operation writes, and the bytes that it moves.

  Args:
    loop: Operations of one layer.
    kind: A kind of `Operation`.
    least: Bytes below which an operation is not listed.

  Returns:
    Bytes read and written by the sizes of the results, without axes of one.
  """
  found: dict[tuple[int, ...], int] = {}
  for x in loop:
    if x.kind == kind and x.num_bytes >= least:
      shape = tuple(n for n in x.shapes[0] if n > 1)
      found[shape] = found.get(shape, 0) + x.num_bytes
  return found
