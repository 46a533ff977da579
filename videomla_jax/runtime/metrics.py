"""Scalars of a run: declared names with units, and two file formats.

Our own tools and tests read the JSON lines; TensorBoard files are written
without TensorFlow. Both are cut back to the resumed step, so that a run leaves
the same files whether it was interrupted or not.
"""

import collections.abc
import json
import math
import os
import pathlib
import time
import typing

import jax
import numpy as np
import tensorboardX

from videomla_jax.runtime import event_files
from videomla_jax.storage import atomic
from videomla_jax.storage import ordinary_files

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
  "vae/loss": ("1", "weighted sum of the four below"),
  "vae/reconstruction": ("1", "mean absolute error of pixels in [-1, 1]"),
  "vae/squared": ("1", "mean squared error of the same"),
  "vae/kl": ("nat", "divergence of a latent scalar from a normal one"),
  "vae/temporal": ("1", "mean absolute error of differences in time"),
  "eval/psnr": ("dB", "of held-out clips, encoded and decoded"),
  "eval/seam": ("1", "change of the error at cuts over that elsewhere"),
  "rank/median": ("1", "rank of 99 % of the energy of attention, by layer"),
  "rank/least": ("1", "the same, of the layer with the least"),
  "rank/most": ("1", "the same, of the layer with the most"),
  "rank/share": ("fraction", "the median, of the highest possible rank"),
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
      resumed_step: Number of finished steps; 0 starts anew.

    Raises:
      ValueError: If the folder cannot be written.
    """
    self._path = pathlib.Path(directory) / "metrics.jsonl"
    # Every process has a writer, but only one of them may write.
    self._writes = jax.process_index() == 0
    if not self._writes:
      return
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      _drop_later_lines(self._path, resumed_step)
      event_files.join(self._path.parent)
      # The file is buffered by line, so that a run that is killed leaves whole
      # lines.
      self._file = self._path.open("a", buffering=1, encoding="utf-8")
    except OSError as error:
      raise ValueError(
        f"directory={str(directory)!r} cannot be written ({error.strerror});"
        " choose a folder that you may write to"
      ) from error
    except ordinary_files.BadFile as error:
      raise ValueError(
        f"directory={str(directory)!r} has a file of metrics or events that"
        f" {error}; move it away"
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
    # Every process checks: if only the one that writes raised, the others would
    # wait for it in their next collective.
    for name in values:
      unit(name)
    numbers = {name: _number(name, x) for name, x in values.items()}
    if not self._writes:
      return
    # JSON has no NaN and no infinity, so such values become null.
    finite = {n: x if math.isfinite(x) else None for n, x in numbers.items()}
    line = json.dumps({"step": step, "seconds": time.time(), **finite})
    self._file.write(line + "\n")
    for name, number in numbers.items():
      self._board.add_scalar(name, number, global_step=step)

  def close(self) -> None:
    """Flushes and closes both files, where this process writes them."""
    if self._writes:
      self._file.close()
      self._board.close()

  def __enter__(self) -> "MetricWriter":
    """Returns the open writer, for a `with` block."""
    return self

  def __exit__(self, *unused: object) -> None:
    """Closes both files, whether the block failed or not."""
    self.close()


def read_jsonl(
  directory: str | os.PathLike[str],
) -> list[dict[str, typing.Any]]:
  """Reads the complete lines of a run's `metrics.jsonl`, oldest first."""
  path = pathlib.Path(directory) / "metrics.jsonl"
  if not path.exists():
    return []
  lines = path.read_text(encoding="utf-8").split("\n")
  # What follows the last newline was interrupted while it was written.
  return [json.loads(line) for line in lines[:-1]]


def _drop_later_lines(path: pathlib.Path, resumed_step: int) -> None:
  """Keeps complete lines up to the resumed step; replaces the file at once."""
  if not path.exists():
    return
  # A resumed run computes the later steps again, and they would stand here
  # twice.
  kept = []
  text = ordinary_files.read_text(path, limit=ordinary_files.MOST_BYTES)
  for line in text.splitlines():
    try:
      if json.loads(line)["step"] <= resumed_step:
        kept.append(line + "\n")
    except (ValueError, KeyError, TypeError):
      continue  # this line was interrupted while it was written
  atomic.write_text(path, "".join(kept))


def _number(name: str, value: Scalar) -> float:
  """Fetches one number from its device."""
  array = np.asarray(value)
  if array.size != 1:
    raise ValueError(
      f"metric {name!r} has shape {array.shape} and must be one number;"
      " write its mean"
    )
  return float(array.reshape(()))
