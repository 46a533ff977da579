"""Lists what the devices of a compiled program send each other.

The partitioner derives all communication from a few layouts, so which
communication that is has to be read from its result. A collective in a loop is
listed once.
"""

import collections
import dataclasses
import math
import re

KINDS = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-broadcast",
  "collective-permute",
  "reduce-scatter",
)

# `%name = TYPE kind(...)`; the type of the asynchronous form has the operands
# before the results.
_LINE = re.compile(rf"= (\(*\w.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d+(?:[a-z]\d+\w*)?|pred)\[([\d,]*)\]")
_SOURCE = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """One instruction, which may send several arrays at once.

  Attributes:
    kind: One of `KINDS`.
    arrays: Type and shape of each result on one device.
    source: Name of the operation in the traced program; may be empty.
  """

  kind: str
  arrays: tuple[str, ...]
  source: str

  @property
  def sizes(self) -> tuple[int, ...]:
    """Number of elements of each result."""
    return tuple(
      math.prod(int(n) for n in dims.split(",") if n)
      for _, dims in _ARRAY.findall(" ".join(self.arrays))
    )

  def __str__(self) -> str:
    """Returns kind, arrays and the end of the source in one line."""
    arrays = collections.Counter(self.arrays)
    counted = (f"{n} x {a}" if n > 1 else a for a, n in arrays.items())
    return f"{self.kind} {', '.join(counted)} from {self.source[-60:]}"


def of(program: str) -> list[Collective]:
  """Lists the collectives of a program in the order of its text.

  Args:
    program: Optimised HLO, such as `compiled.as_text()`.
  """
  found = []
  for line in program.splitlines():
    match = _LINE.search(line)
    if match is None:
      continue
    arrays = [f"{dtype}[{dims}]" for dtype, dims in _ARRAY.findall(match[1])]
    if match[3]:
      # The asynchronous form lists operands, results, and sometimes numbers of
      # the runtime.
      arrays = [a for a in arrays if a != "u32[]"]
      arrays = arrays[len(arrays) // 2 :]
    source = _SOURCE.search(line)
    found.append(
      Collective(
        kind=match[2],
        arrays=tuple(arrays),
        source=source[1] if source else "",
      )
    )
  return found
