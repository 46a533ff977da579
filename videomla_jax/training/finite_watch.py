"""Watches updates that were skipped because they were not finite."""

import collections
import pathlib
from typing import NamedTuple

from absl import logging
import jax
from jaxtyping import Array, Int32
import numpy as np

from videomla_jax.storage import atomic


class _Steps(NamedTuple):
  """Steps of one call whose counts of skipped updates were not fetched yet."""

  last: int
  skipped: Int32[Array, "*n"]
  batch: dict[str, np.ndarray]


class FiniteWatch:
  """Counts skipped updates, keeps what caused them, stops after too many.

  The count of a call is fetched when the next one has been dispatched, so that
  the device never waits.
  """

  def __init__(self, folder: pathlib.Path, *, limit: int) -> None:
    """Prepares to watch; call `start` with the first count.

    Args:
      folder: Where batches of skipped updates are written.
      limit: Skipped steps in a row that end the run.
    """
    self._folder, self._limit = folder, limit
    self._pending: collections.deque[_Steps] = collections.deque()
    self._total: int | None = None
    self._in_a_row = 0

  def see(
    self, step: int, skipped: Int32[Array, "*n"], batch: dict[str, np.ndarray]
  ) -> None:
    """Looks at the call before this one.

    Args:
      step: The last step that was dispatched, counted from 1.
      skipped: Updates left out so far, by the count of that step, or of each
        step of the call.
      batch: This process's part of its batch; with a count for each step,
        batches lie along a first axis.

    Raises:
      ValueError: If too many steps in a row were skipped.
    """
    self._pending.append(_Steps(step, skipped, batch))
    # The newest steps may still run, and fetching its count would wait for it.
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

  def _check(self, steps: _Steps) -> None:
    """Fetches the counts of one call and looks at step after step."""
    counts = np.asarray(steps.skipped)
    if counts.ndim == 0:
      self._check_step(steps.last, int(counts), steps.batch)
      return
    first = steps.last - len(counts) + 1
    for i, count in enumerate(counts):
      batch = {
        n: x if n == "negative" else x[i] for n, x in steps.batch.items()
      }
      self._check_step(first + i, int(count), batch)

  def _check_step(
    self, number: int, now: int, batch: dict[str, np.ndarray]
  ) -> None:
    """Compares the count of one step with that of the one before."""
    if now == self._total:
      self._in_a_row = 0
      return
    # A step counts once, however many of its updates were left out.
    self._total = now
    self._in_a_row += 1
    path = self._dump(number, batch)
    logging.warning(
      "step %d was skipped: loss, gradient or parameters are not finite (%d in"
      " a row); its batch is in %s", number, self._in_a_row, path,
    )  # fmt: skip
    if self._in_a_row >= self._limit:
      raise ValueError(
        "loss, gradient or parameters are not finite in "
        f"{self._in_a_row} steps in a row, the last is {number}; lower "
        f"optim.learning_rate, look at {path}, or continue from the last "
        "checkpoint, which is older than these steps."
      )

  def _dump(self, number: int, batch: dict[str, np.ndarray]) -> pathlib.Path:
    """Writes this process's part of a batch; a full disk ends no run."""
    name = f"step-{number}-process-{jax.process_index()}.npz"
    path = self._folder / name
    arrays = {k: np.asarray(x) for k, x in batch.items()}
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
      logging.warning("%s was not written: %s", path, error)
    return path
