"""Counts what the loop over layers of a compiled program reads and writes.

Products and attention have to move their operands; what is moved beside them
is the price of how a program is written, docs/kernels.md. XLA's own cost
analysis says nothing about programs for GPUs, so the optimised HLO is read.
"""

from collections.abc import Sequence
import dataclasses
import re

from videomla_jax.costs import program_text

_PRODUCT = re.compile(r'cublas|\bdot\(|"__triton_(nested_)?gemm')
_ATTENTION = re.compile(r"fmha|mosaic_gpu|xla\.gpu\.triton")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
  """One kernel or copy of the loop.

  Attributes:
    name: Its name in the program.
    kind: "product", "attention", "weights" (all that it reads is cut out of
      stacks of weights, however it changes them; where layers lie apart, is an
      argument of the program), "entries" (likewise of the cache or the text),
      "concatenation" (a fusion that ends with one) or "other".
    shapes: Sizes of its results.
    num_bytes: Bytes that it reads and writes; workspaces are left out.
  """

  name: str
  kind: str
  shapes: tuple[tuple[int, ...], ...]
  num_bytes: int


# A stack of weights has axes of layers, inputs and outputs, and one of biases
# and gains two; stacks of entries have more.
_WEIGHT_RANKS = (2, 3)


def _kind(
  kernel: program_text.Kernel, arguments: frozenset[str] = frozenset()
) -> str:
  """Says what an operation does."""
  line, inside = kernel.line, kernel.inside
  words = line.rest + "\n".join(f"{x.opcode}({x.rest}" for x in inside)
  if _PRODUCT.search(words):
    return "product"
  if _ATTENTION.search(words):
    return "attention"
  arrays = [r for r in kernel.reads if r.shape]
  if arrays and all(r.cut or r.name in arguments for r in arrays):
    # An array of one layer lacks the axis of layers.
    ranks = {len(r.shape) + (r.name in arguments) for r in arrays}
    weights = ranks <= {*_WEIGHT_RANKS}
    return "weights" if weights else "entries"
  root = [x.opcode for x in inside if x.is_root]
  return "concatenation" if "concatenate" in (line.opcode, *root) else "other"


def layer_loops(text: str, *, apart: bool = False) -> list[list[Operation]]:
  """Returns the operations of every innermost loop that runs layers.

  Args:
    text: Optimised HLO of a program for a GPU.
    apart: Whether layers lie apart. A loop over passes then runs all layers,
      and what it only cuts one layer out of, such as the cache, counts as one.
  """
  program = program_text.parse(text)
  bodies = {
    line.attribute("body")
    for lines in program.computations.values()
    for line in lines
    if line.opcode == "while"
  }
  loops = []
  for body in sorted(bodies):
    if any(line.opcode == "while" for line in program.computations[body]):
      continue
    arguments = program_text.arguments(program, body) if apart else frozenset()
    found = [
      Operation(
        name=kernel.line.name,
        kind=_kind(kernel, arguments),
        shapes=kernel.shapes,
        num_bytes=kernel.num_bytes,
      )
      for kernel in program_text.kernels(program, body, static_slices=apart)
    ]
    if any(x.kind == "attention" for x in found):
      loops.append(found)
  return loops


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
