"""What a row of the suite is, and how a program is timed."""

from collections.abc import Callable
import dataclasses
import math
import time
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree
import numpy as np

from videomla_jax.measuring import record


class Figure(NamedTuple):
  """One number of a measurement.

  Attributes:
    suffix: Added to the name of the row; empty for its main number.
    value: The number.
    unit: Its unit.
  """

  suffix: str
  value: float | int
  unit: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """A measurement that can be made; its fields are those of `record.FIELDS`.

  Attributes:
    name: What is measured.
    measure: Makes the measurement.
    shape: Sizes, in words or as a key of `attention_shapes.SHAPES`.
    attention: "latent" or "dense", where a network is measured.
    form: Form of latent attention.
    implementation: What computes it.
    direction: "forward" or "gradient".
    tiles: Sizes of a kernel's tiles, where they are what is compared.
    holes: Whether some frames of the window are not valid.
  """

  name: str
  measure: Callable[[], list[Figure]]
  shape: str | None = None
  attention: str | None = None
  form: str | None = None
  implementation: str | None = None
  direction: str | None = None
  tiles: str | None = None
  holes: bool | None = None

  @property
  def line(self) -> record.Line:
    """The fields of a line that say what was measured."""
    line = {f: getattr(self, f) for f in (*record.FIELDS, "holes")}
    return {k: v for k, v in line.items() if v is not None}

  @property
  def label(self) -> str:
    """Name of the row in one line; `rows` of the config selects by it."""
    return record.label(self.line)

  def lines(self) -> list[record.Line]:
    """Measures, and returns a line per figure, or one with what went wrong.

    That line has `refused` where the device cannot run the row by its nature,
    and `error` where it should.
    """
    try:
      figures = self.measure()
    except NotImplementedError as reason:
      return [self.line | {"refused": str(reason)[:300]}]
    # Compilers and drivers raise many kinds of errors. What does not run on a
    # device is a result, and must not cost the rows behind it.
    except Exception as error:
      first = (str(error) or repr(error)).splitlines()[0]
      return [self.line | {"error": f"{type(error).__name__}: {first[:300]}"}]
    return [self._line_of(f) for f in figures]

  def _line_of(self, figure: Figure) -> record.Line:
    """Returns the line of a figure; what is not finite is no number."""
    name = f"{self.name}_{figure.suffix}" if figure.suffix else self.name
    if not math.isfinite(figure.value):
      return self.line | dict(name=name, error=f"the result is {figure.value}")
    value = float(f"{figure.value:.6g}")
    return self.line | dict(name=name, value=value, unit=figure.unit)


def seconds(
  run: Callable[..., PyTree], *args: PyTree, budget: float = 1.0
) -> float:
  """Measures a call: the median of three means over calls that are queued.

  Queued calls hide the time in which the host starts the next one, as a rollout
  does. Two calls before compile and warm up.

  Args:
    run: A compiled or jitted function whose arguments are not donated.
    *args: Its arguments.
    budget: Seconds that measuring may take, about.
  """
  jax.block_until_ready(run(*args))
  started = time.perf_counter()
  jax.block_until_ready(run(*args))
  once = max(time.perf_counter() - started, 1e-7)
  count = int(np.clip(budget / (3 * once), 1, 50))
  times = []
  for _ in range(3):
    started = time.perf_counter()
    results = [run(*args) for _ in range(count)]
    jax.block_until_ready(results[-1])
    times.append((time.perf_counter() - started) / count)
    del results
  return float(np.median(times))


def seconds_of_steps[Carry: PyTree](
  step: Callable[[Carry], Carry], carry: Carry, *, count: int = 4
) -> tuple[float, Carry]:
  """Measures steps that use up what the one before them returned.

  Steps are queued, as a rollout or a training run queues them.

  Args:
    step: Takes what it returned last; its arguments may be donated.
    carry: What the first step takes. That step is not timed.
    count: Steps that are timed.

  Returns:
    Mean seconds of a step, and what the last one returned.
  """
  carry = step(carry)
  jax.block_until_ready(carry)
  started = time.perf_counter()
  for _ in range(count):
    carry = step(carry)
  jax.block_until_ready(carry)
  return (time.perf_counter() - started) / count, carry


def compiled(
  jitted: Any, *args: PyTree, **kwargs: Any
) -> tuple[Any, list[Figure]]:
  """Compiles a program, and returns it with time and memory of that.

  Args:
    jitted: Result of `jax.jit`.
    *args: Arguments, real or abstract.
    **kwargs: Further arguments, static ones among them.
  """
  started = time.perf_counter()
  program = jitted.lower(*args, **kwargs).compile()
  took = time.perf_counter() - started
  analysis = program.memory_analysis()
  return program, [
    Figure("compile", took, "s"),
    Figure("temporaries", analysis.temp_size_in_bytes / 1e6, "MB"),
  ]
