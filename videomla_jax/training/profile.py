"""A trace of some steps, for TensorBoard's profiler."""

import pathlib

from absl import logging
import jax
from jaxtyping import PyTree


class Profile:
  """Traces a range of steps into WORKDIR/profile."""

  def __init__(self, root: pathlib.Path, steps: str) -> None:
    """Reads which steps to trace.

    Args:
      root: Folder of the run.
      steps: `FIRST:LAST` step, or nothing.

    Raises:
      ValueError: If it is not such a pair.
    """
    self._folder, self._on = root / "profile", False
    # Steps are counted from 1, so -1 stands for none.
    self._first = self._last = -1
    if steps:
      first, separator, last = steps.partition(":")
      if not (separator and first.isdigit() and last.isdigit()):
        raise ValueError(
          f"--profile={steps!r} must name the first and the last step; use "
          "--profile=10:15."
        )
      self._first, self._last = int(first), int(last)

  def before(self, step: int, count: int = 1) -> None:
    """Starts the trace in front of its first step.

    Args:
      step: The step that comes next, counted from 1.
      count: Steps that come next in one call.
    """
    if step <= self._first < step + count:
      jax.profiler.start_trace(str(self._folder))
      self._on = True

  def after(self, step: int, scalars: PyTree) -> None:
    """Ends the trace after its last step.

    Args:
      step: The step that was dispatched, counted from 1.
      scalars: The results of the step; the trace lasts until they are there.
    """
    if self._on and step >= self._last:
      # The device is behind; without this the trace would miss its work.
      jax.block_until_ready(scalars)
      self.stop()
      logging.info("trace of steps up to %d is in %s", step, self._folder)

  def stop(self) -> None:
    """Ends a trace that is running."""
    if self._on:
      jax.profiler.stop_trace()
      self._on = False
