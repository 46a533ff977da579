"""Counts what a compiled decoder reads and writes beside its convolutions.

Convolutions have to move their operands. What is moved beside them is the price
of how the program is written: docs/kernels.md.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re

from videomla_jax.costs import program_text

KINDS = (
  *("convolution", "product", "weights", "slice", "concatenation"),
  *("copy", "other"),
)
_CONVOLUTION = re.compile(r'"__cudnn\$conv|\bconvolution\(')
_PRODUCT = re.compile(r'cublas|\bdot\(|"__triton_(nested_)?gemm|fmha')
_WEIGHT = re.compile(r'op_name="[^"]*\b(kernel|bias|gain)\b')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Fusions of these alone compute nothing.
_MOVES = {
  *("parameter", "constant", "bitcast", "reshape", "transpose", "copy"),
  *("tuple", "get-tuple-element", "slice", "dynamic-slice", "concatenate"),
  *("dynamic-update-slice", "pad", "broadcast", "convert"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
  """One kernel or copy.

  Attributes:
    name: Its name in the program.
    kind: One of `KINDS`: "weights" reads nothing but weights, "slice" and
      "copy" compute nothing, "concatenation" joins arrays, whatever else it
      does.
    shapes: Sizes of its results.
    num_bytes: Bytes that it reads and writes each time.
    times: How often it runs.
  """

  name: str
  kind: str
  shapes: tuple[tuple[int, ...], ...]
  num_bytes: int
  times: int


def operations(text: str) -> list[Operation]:
  """Lists all operations of a program, those of its loops too.

  Args:
    text: Optimised HLO of a program for a GPU, whose arguments have the names
      of a network's weights.

  Raises:
    ValueError: If a loop does not say how often it runs.
  """
  program = program_text.parse(text)
  return list(_operations(program, program.entry, (), 1))


def total(found: Sequence[Operation]) -> dict[str, tuple[int, int]]:
  """Adds up operations by kind.

  Args:
    found: The operations.

  Returns:
    How many run and the bytes that they read and write, by kind.
  """
  sums = dict.fromkeys(KINDS, (0, 0))
  for x in found:
    count, moved = sums[x.kind]
    sums[x.kind] = count + x.times, moved + x.times * x.num_bytes
  return sums


def beside_convolutions(found: Sequence[Operation]) -> int:
  """Counts the bytes moved beside convolutions and products.

  Args:
    found: The operations.
  """
  kinds = ("convolution", "product")
  return sum(x.num_bytes * x.times for x in found if x.kind not in kinds)


# Whether a value, or each value of a tuple, follows from weights alone.
type _Origin = bool | Sequence[_Origin]


def _operations(
  program: program_text.Program,
  computation: str,
  given: Sequence[_Origin],
  times: int,
) -> Iterator[Operation]:
  """Yields the operations of a computation.

  Args:
    program: The program.
    computation: Name of the computation.
    given: Origins of its parameters; for the entry their names tell.
    times: How often it runs.
  """
  kernels = {
    k.line.name: k
    for k in program_text.kernels(program, computation, static_slices=True)
  }
  origins: dict[str, _Origin] = {}
  for line in program.computations[computation]:
    from_weights = [origins.get(x, False) for x in line.operands]
    if line.opcode == "parameter":
      place = int(line.rest.split(")")[0])
      named = bool(_WEIGHT.search(line.rest))
      origins[line.name] = given[place] if given else named
    elif line.opcode == "tuple":
      origins[line.name] = from_weights
    elif line.opcode == "get-tuple-element":
      (whole,) = from_weights
      origins[line.name] = (
        whole
        if isinstance(whole, bool)
        else whole[int(line.attribute("index"))]
      )
    elif line.opcode in ("while", "call"):
      body, runs = _called(line)
      origins[line.name] = from_weights[0] if line.opcode == "while" else False
      yield from _operations(program, body, from_weights, times * runs)
    elif line.is_free:
      origins[line.name] = bool(from_weights) and all(from_weights)
    else:
      kernel = kernels[line.name]
      kind = _kind(kernel, origins)
      origins[line.name] = kind == "weights"
      yield Operation(
        name=line.name,
        kind=kind,
        shapes=kernel.shapes,
        num_bytes=kernel.num_bytes,
        times=times,
      )


def _called(line: program_text.Line) -> tuple[str, int]:
  """Returns the computation that a line runs, and how often."""
  if line.opcode == "call":
    return line.attribute("to_apply"), 1
  trips = _TRIPS.search(line.rest)
  if trips is None:
    raise ValueError(
      f"loop {line.name} does not say how often it runs; use one of a fixed "
      "length."
    )
  return line.attribute("body"), int(trips[1])


def _kind(kernel: program_text.Kernel, origins: Mapping[str, _Origin]) -> str:
  """Says what an operation does."""
  line, inside = kernel.line, kernel.inside
  words = line.rest + "\n".join(f"{x.opcode}({x.rest}" for x in inside)
  if _CONVOLUTION.search(words):
    return "convolution"
  if _PRODUCT.search(words):
    return "product"
  arrays = [r for r in kernel.reads if math.prod(r.shape) > 1]
  if arrays and all(origins.get(r.name) is True for r in arrays):
    return "weights"
  opcodes = {line.opcode, *(x.opcode for x in inside)} - {"fusion"}
  if "concatenate" in opcodes:
    return "concatenation"
  if not opcodes <= _MOVES:
    return "other"
  return "slice" if {"slice", "dynamic-slice"} & opcodes else "copy"
