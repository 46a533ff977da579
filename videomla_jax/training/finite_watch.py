"""Watches updates that were skipped because they were not finite."""

import collections
import pathlib
from typing import NamedTuple

from absl import logging
import jax
from jaxtyping import Array, Int32
import numpy as np

from videomla_jax.storage import atomic


class _Step(NamedTuple):
  """A step whose count of skipped updates was not fetched yet."""

  number: int
  skipped: Int32[Array, ""]
  batch: dict[str, np.ndarray]


class FiniteWatch:
  """Counts skipped updates, keeps what caused them, stops after too many.

  The count of a step is fetched when the next step has been dispatched, so that
  the device never waits.
  """

  def __init__(self, folder: pathlib.Path, *, limit: int) -> None:
    """Prepares to watch; call `start` with the first count.

    Args:
      folder: Where batches of skipped updates are written.
      limit: Skipped steps in a row that end the run.
    """
    self._folder, self._limit = folder, limit
    self._pending: collections.deque[_Step] = collections.deque()
    self._total: int | None = None
    self._in_a_row = 0

  def see(
    self, step: int, skipped: Int32[Array, ""], batch: dict[str, np.ndarray]
  ) -> None:
    """Looks at the step before this one.

    Args:
      step: The step that was dispatched, counted from 1.
      skipped: Updates left out so far, by the count of that step.
      batch: This process's part of its batch.

    Raises:
      ValueError: If too many steps in a row were skipped.
    """
    self._pending.append(_Step(step, skipped, batch))
    # The newest step may still run, and fetching its count would wait for it.
    while len(self._pending) > 1:
      self._check(self._pending.popleft())

  def finish(self) -> bool:
    """Looks at the steps that are left, which waits for the newest.

    Returns:
      Whether the newest step was an update, and not skipped.

    Raises:
      ValueError: If too many steps in a row were skipped.
    """
    while self._pending:
      self._check(self._pending.popleft())
    return self._in_a_row == 0

  def start(self, skipped: Int32[Array, ""]) -> None:
    """Sets the count that a restored state begins with."""
    self._total = int(skipped)

  def _check(self, step: "_Step") -> None:
    """Fetches the count of one step and compares it with the one before."""
    now = int(step.skipped)
    if now == self._total:
      self._in_a_row = 0
      return
    # A step counts once, however many of its updates were left out.
    self._total = now
    self._in_a_row += 1
    path = self._dump(step)
    logging.warning(
      "step %d was skipped: loss, gradient or parameters are not finite (%d in"
      " a row); its batch is in %s", step.number, self._in_a_row, path,
    )  # fmt: skip
    if self._in_a_row >= self._limit:
      raise ValueError(
        "loss, gradient or parameters are not finite in "
        f"{self._in_a_row} steps in a row, the last is {step.number}; lower "
        f"optim.learning_rate, look at {path}, or continue from the last "
        "checkpoint, which is older than these steps."
      )

  def _dump(self, step: "_Step") -> pathlib.Path:
    """Writes this process's part of a batch; a full disk ends no run."""
    name = f"step-{step.number}-process-{jax.process_index()}.npz"
    path = self._folder / name
    arrays = {k: np.asarray(x) for k, x in step.batch.items()}
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
      logging.warning("%s was not written: %s", path, error)
    return path
