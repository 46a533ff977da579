"""Shows how far a task is: a bar in a terminal, plain lines elsewhere."""

import collections.abc
import io
import sys
import time
import typing

import tqdm

from videomla_jax.runtime import metrics
from videomla_jax.runtime import signals
from videomla_jax.runtime import terminal


class Progress:
  """A progress bar in a terminal, and a plain line now and then elsewhere."""

  def __init__(
    self,
    total: int,
    description: str,
    *,
    unit: str = "step",
    initial: int = 0,
    plain_seconds: float | int = 30,
    file: io.TextIOBase | None = None,
    clock: collections.abc.Callable[[], float | int] = time.monotonic,
  ) -> None:
    """Shows the bar at its beginning.

    Args:
      total: Number of units of the whole task.
      description: What is being done, in a word or two.
      unit: "step" shows seconds per step; "frame" shows frames per second.
      initial: Number of units that an earlier run finished.
      plain_seconds: Time between plain lines if `file` is no terminal.
      file: File to write to; standard error by default.
      clock: Returns seconds since any origin; tests replace it.
    """
    # A bar moves the cursor, so it goes past what escapes control characters.
    self._file: typing.Any = terminal.raw(file or sys.stderr)
    self._total, self._initial, self._done = total, initial, initial
    self._description, self._unit = terminal.printable(description), unit
    self._clock, self._plain_seconds = clock, plain_seconds
    self._started = self._last_line = clock()
    self._fields = ""
    self._bar = None
    if self._file.isatty():
      self._bar = tqdm.tqdm(
        total=total,
        initial=initial,
        desc=self._description,
        unit=unit,
        file=self._file,
        dynamic_ncols=True,
      )

  def update(self, count: int = 1, **fields: metrics.Scalar | str) -> None:
    """Counts finished units and shows fields such as `loss=0.1`.

    Raises:
      signals.Interrupted: If a signal came that was swallowed on its way.
    """
    signals.check()
    self._done += count
    if fields:
      self._fields = ", ".join(f"{k} {_show(v)}" for k, v in fields.items())
    if self._bar is not None:
      self._bar.set_postfix_str(self._fields, refresh=False)
      self._bar.update(count)
    elif self._clock() - self._last_line >= self._plain_seconds:
      self._write_line()

  def line(self) -> str:
    """Returns the state as one line: share done, fields, rate, time left."""
    # The clock may not have moved since the start, and rates divide by it.
    seconds = max(self._clock() - self._started, 1e-9)
    done = self._done - self._initial
    share = 100 * self._done / max(self._total, 1)
    parts = [
      f"{self._description}: {self._done}/{self._total} {self._unit}s"
      f" ({share:.0f} %)"
    ]
    if self._fields:
      parts.append(self._fields)
    if done:
      left = (self._total - self._done) * seconds / done
      parts += [self._rate(done, seconds), f"ETA {_clock_time(left)}"]
    return ", ".join(parts)

  def close(self) -> None:
    """Ends the bar, or writes the last plain line."""
    if self._bar is not None:
      self._bar.close()
    else:
      self._write_line()

  def __enter__(self) -> "Progress":
    """Returns the open bar, for a `with` block."""
    return self

  def __exit__(self, *unused: object) -> None:
    """Ends the bar, whether the block failed or not."""
    self.close()

  def _rate(self, done: int, seconds: float) -> str:
    """Writes the speed: seconds per step, or other units per second."""
    if self._unit == "step":
      return f"{seconds / done:.3g} s/step"
    return f"{done / seconds:.3g} {self._unit}s/s"

  def _write_line(self) -> None:
    """Writes the state as a plain line."""
    self._last_line = self._clock()
    print(self.line(), file=self._file, flush=True)


def _show(value: metrics.Scalar | str) -> str:
  """Writes the value of a field, numbers with four digits."""
  return value if isinstance(value, str) else f"{float(value):.4g}"


def _clock_time(seconds: float | int) -> str:
  """Writes a duration in seconds as h:mm:ss, rounded to a second."""
  whole = round(seconds)
  return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
