"""Scalars of a run: declared names with units, two file formats, a bar.

JSONL is what our own tools and tests read; TensorBoard files are written
without TensorFlow. Both are cut back to the resumed step, so a run that was
interrupted leaves the same files as one that was not.
"""

import collections.abc
import io
import json
import math
import os
import pathlib
import sys
import time
import typing

import jax
import numpy as np
import tensorboardX
import tqdm

from videomla_jax.storage import atomic

Scalar = float | int | np.generic | np.ndarray | jax.Array

# Name -> unit and meaning. A scalar that is not here cannot be written.
METRICS: dict[str, tuple[str, str]] = {
  "train/loss": ("1", "weighted mean squared error of the prediction"),
  "train/loss_first_chunk": ("1", "the same for the chunk without context"),
  "train/loss_later_chunks": ("1", "the same for chunks with context"),
  "train/loss_dmd": ("1", "distribution matching loss of the student"),
  "train/loss_critic": ("1", "denoising loss of the critic"),
  "train/grad_norm": ("1", "global gradient norm before clipping"),
  "train/critic_grad_norm": ("1", "the same, mean of the critic's updates"),
  "train/skipped": ("updates", "left out since they were not finite"),
  "train/learning_rate": ("1", "step size of the optimiser"),
  "eval/loss": ("1", "train/loss on held-out clips"),
  "perf/step_seconds": ("s", "wall time of one step"),
  "perf/clips_per_second": ("clips/s", "clips trained on"),
  "perf/eval_seconds": ("s", "time of one evaluation"),
  "perf/teraflops": (
    "TFLOP/s",
    "products done per device, recomputed activations included",
  ),
  "perf/flop_utilisation": ("fraction", "of the peak bfloat16 rate"),
  "perf/peak_memory_gib": ("GiB", "peak device memory"),
}


def unit(name: str) -> str:
  """Returns the unit of a declared metric.

  Raises:
    ValueError: If the name is not in `METRICS`.
  """
  if name not in METRICS:
    raise ValueError(
      f"metric={name!r} is not declared; declare it with a unit in"
      f" videomla_jax/runtime/metrics.py or use one of {', '.join(METRICS)}"
    )
  return METRICS[name][0]


class MetricWriter:
  """Writes scalars to `metrics.jsonl` and to TensorBoard event files."""

  def __init__(
    self, directory: str | os.PathLike[str], *, resumed_step: int = 0
  ) -> None:
    """Opens both files and drops what lies beyond the resumed step.

    Args:
      directory: Folder, created if missing.
      resumed_step: Last finished step; 0 starts anew.

    Raises:
      ValueError: If the folder cannot be written.
    """
    self._path = pathlib.Path(directory) / "metrics.jsonl"
    # Every process calls this class; only one may write.
    self._writes = jax.process_index() == 0
    if not self._writes:
      return
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      _drop_later_lines(self._path, resumed_step)
      self._file = self._path.open("a", buffering=1, encoding="utf-8")
    except OSError as error:
      raise ValueError(
        f"directory={str(directory)!r} cannot be written ({error.strerror});"
        " choose a folder that you may write to"
      ) from error
    self._board = tensorboardX.SummaryWriter(
      str(self._path.parent), purge_step=resumed_step + 1, flush_secs=10
    )

  def scalars(
    self, step: int, values: collections.abc.Mapping[str, Scalar]
  ) -> None:
    """Writes scalars of one step.

    Args:
      step: Number of finished steps.
      values: Declared name to number; device arrays are fetched here.

    Raises:
      ValueError: If a name is not declared or a value is not one number.
    """
    for name in values:
      unit(name)
    numbers = {name: _number(name, x) for name, x in values.items()}
    if not self._writes:
      return
    # JSON has no NaN or infinity: such values become null.
    finite = {n: x if math.isfinite(x) else None for n, x in numbers.items()}
    line = json.dumps({"step": step, "seconds": time.time(), **finite})
    self._file.write(line + "\n")
    for name, number in numbers.items():
      self._board.add_scalar(name, number, global_step=step)

  def close(self) -> None:
    """Flushes and closes both files."""
    if self._writes:
      self._file.close()
      self._board.close()

  def __enter__(self) -> "MetricWriter":
    """Returns itself."""
    return self

  def __exit__(self, *unused: object) -> None:
    """Closes."""
    self.close()


def read_jsonl(
  directory: str | os.PathLike[str],
) -> list[dict[str, typing.Any]]:
  """Reads the complete lines of a run's `metrics.jsonl`, oldest first."""
  path = pathlib.Path(directory) / "metrics.jsonl"
  if not path.exists():
    return []
  lines = path.read_text(encoding="utf-8").split("\n")
  # What follows the last newline was cut off while it was written.
  return [json.loads(line) for line in lines[:-1]]


class Progress:
  """A progress bar; where nobody watches, a plain line now and then."""

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
    """Shows the bar.

    Args:
      total: Units in the whole task.
      description: What is being done, in a word or two.
      unit: "step" shows seconds per step; "frame" shows frames per second.
      initial: Units that an earlier run finished.
      plain_seconds: Time between plain lines if `file` is no terminal.
      file: Where to write; standard error by default.
      clock: Seconds from any origin, for tests.
    """
    self._file: typing.Any = sys.stderr if file is None else file
    self._total, self._initial, self._done = total, initial, initial
    self._description, self._unit = description, unit
    self._clock, self._plain_seconds = clock, plain_seconds
    self._started = self._last_line = clock()
    self._fields = ""
    self._bar = None
    if self._file.isatty():
      self._bar = tqdm.tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        file=self._file,
        dynamic_ncols=True,
      )

  def update(self, count: int = 1, **fields: Scalar | str) -> None:
    """Counts finished units and shows fields such as `loss=0.1`."""
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
    """Returns itself."""
    return self

  def __exit__(self, *unused: object) -> None:
    """Closes."""
    self.close()

  def _rate(self, done: int, seconds: float) -> str:
    """Words the speed: slow units by their time, fast ones by their number."""
    if self._unit == "step":
      return f"{seconds / done:.3g} s/step"
    return f"{done / seconds:.3g} {self._unit}s/s"

  def _write_line(self) -> None:
    """Writes the plain line."""
    self._last_line = self._clock()
    print(self.line(), file=self._file, flush=True)


def _drop_later_lines(path: pathlib.Path, resumed_step: int) -> None:
  """Keeps complete lines up to the resumed step; replaces the file at once."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      if json.loads(line)["step"] <= resumed_step:
        kept.append(line + "\n")
    except (ValueError, KeyError, TypeError):
      continue  # Cut off by the interruption.
  atomic.write_text(path, "".join(kept))


def _number(name: str, value: Scalar) -> float:
  """Fetches one number."""
  array = np.asarray(value)
  if array.size != 1:
    raise ValueError(
      f"metric {name!r} has shape {array.shape} and must be one number;"
      " write its mean"
    )
  return float(array.reshape(()))


def _show(value: Scalar | str) -> str:
  """Formats a field."""
  return value if isinstance(value, str) else f"{float(value):.4g}"


def _clock_time(seconds: float | int) -> str:
  """Formats a duration as h:mm:ss."""
  whole = round(seconds)
  return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
