"""Estimates how long a step of training takes on a GPU that is not here.

The compiled program says how many kernels run and what they read and write; the
traced one, what it multiplies. Small networks are bound by the first two, so a
share of the peak alone, as `benchmark.py:suite=training` assumes, would
flatter them.
"""

import dataclasses
import re

from videomla_jax.costs import program_text
from videomla_jax.ops import device

# Assumptions, no measurements: what a kernel takes before it does anything, and
# which share of a data sheet small products and scattered reads reach.
LAUNCH_SECONDS = 3e-6
PRODUCTS_SHARE = 0.25
MEMORY_SHARE = 0.6

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Work:
  """What a program does.

  Attributes:
    kernels: Kernels and copies that run, those of loops as often as they do.
    num_bytes: Bytes that they read and write.
    flops: Operations of products and convolutions.
  """

  kernels: int
  num_bytes: int
  flops: float = 0.0

  def seconds(self, peak: device.Peak) -> dict[str, float]:
    """Returns the time of each kind of work, one after the other.

    Args:
      peak: Data sheet of the device.
    """
    return {
      "launches": self.kernels * LAUNCH_SECONDS,
      "memory": self.num_bytes / (MEMORY_SHARE * peak.bandwidth),
      "products": self.flops / (PRODUCTS_SHARE * peak.bf16_flops),
    }


def of_program(text: str, *, flops: float, trips: float | int = 1) -> Work:
  """Counts what a program does.

  Args:
    text: Optimised HLO of a program for a GPU.
    flops: Operations of products and convolutions.
    trips: Mean number of rounds of loops whose end is not known before they
      run.
  """
  program = program_text.parse(text)
  count, moved = _totals(program, program.entry, trips)
  return Work(round(count), round(moved), flops)


def _totals(
  program: program_text.Program, computation: str, trips: float | int
) -> tuple[float, float]:
  """Counts kernels and bytes of a computation and what it calls."""
  count = moved = 0.0
  calls = ("while", "call", "conditional")
  for kernel in program_text.kernels(program, computation, static_slices=True):
    if kernel.line.opcode not in calls:
      count, moved = count + 1, moved + kernel.num_bytes
  for line in program.computations[computation]:
    if line.opcode in calls:
      times, bodies = _called(line, trips)
      # Of branches the one that does most counts.
      inner = max(_totals(program, body, trips) for body in bodies)
      count, moved = count + times * inner[0], moved + times * inner[1]
  return count, moved


def _called(
  line: program_text.Line, trips: float | int
) -> tuple[float | int, list[str]]:
  """Returns how often a line runs what it calls, and the computations."""
  if line.opcode == "call":
    return 1, [line.attribute("to_apply")]
  if line.opcode == "conditional":
    branches = _BRANCHES.search(line.rest)
    if branches:
      return 1, re.findall(r"[\w.-]+", branches[1].replace("%", ""))
    names = ("true_computation", "false_computation")
    return 1, [line.attribute(name) for name in names]
  known = _TRIPS.search(line.rest)
  return int(known[1]) if known else trips, [line.attribute("body")]
