"""What keeps a run from starting, and what ends one early.

A folder belongs to one run at a time (`exclusive`). Signals end a run between
two steps (`StopRequest`); so do updates that are not finite, if there are too
many of them in a row (`FiniteWatch`).
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib
import signal
import time
import types

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LOCK_FILE = ".lock"


@contextlib.contextmanager
def exclusive(root: pathlib.Path) -> Iterator[None]:
  """Keeps other runs out of a folder while the block runs.

  Two runs in one folder would overwrite each other's states. The lock belongs
  to the first process of the run and is freed by the system when that process
  ends, so nothing has to be tidied up after a crash.

  Args:
    root: Folder of the run, which exists.

  Raises:
    ValueError: If another run is in it.
  """
  if jax.process_index():
    # All processes of a run share the folder; the first one keeps it.
    yield
    return
  with (root / LOCK_FILE).open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(
        f"workdir={str(root)!r} is in use by another run; wait for it, stop it,"
        " or name another folder."
      ) from error
    except OSError as error:  # Some network file systems have no locks.
      logging.warning("%s cannot be locked (%s)", root, error)
    yield


def _agree(received: bool, pace: float) -> tuple[bool, float]:
  """Asks all processes, which waits for the slowest.

  Args:
    received: Whether this process was asked to stop.
    pace: Seconds that a step of this process takes.

  Returns:
    Whether any process was asked to stop, and the slowest pace of all.
  """
  # Both questions travel together: every gather waits for the slowest.
  answers = multihost_utils.process_allgather(np.asarray([received, pace]))
  return bool(answers[:, 0].any()), float(answers[:, 1].max())


class StopRequest:
  """Turns signals into a question that the loop asks between two steps.

  SIGTERM (a scheduler), SIGINT (Ctrl-C) and SIGHUP (a closed terminal) differ
  in the exit code alone. Further signals while the last state is being saved
  change nothing.

  A single process answers at every step. Several must answer alike, which
  costs a wait for the device, so they agree on an answer only every few
  seconds: the number of steps to the next one follows from the slowest pace,
  which they agree on, too.
  """

  def __init__(
    self,
    *,
    within: float = 5.0,
    agree: Callable[[bool, float], tuple[bool, float]] = _agree,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    """Prepares to listen; nothing is caught yet.

    Args:
      within: Seconds between two agreements, or one step if that takes longer.
      agree: Takes whether this process was asked to stop and its pace in
        seconds a step; returns whether any process was, and the slowest pace.
      clock: Returns seconds since any moment.
    """
    self._within, self._agree, self._clock = within, agree, clock
    # The first signal counts: it says who wants the run to end.
    self._received: signal.Signals | None = None
    self._obeyed = False
    self._next: int | None = None  # step of the next agreement
    self._last = (0, 0.0)  # step and time of the last agreement

  @contextlib.contextmanager
  def listening(self) -> Iterator["StopRequest"]:
    """Catches signals while the loop runs."""
    # What is ignored, as by `nohup`, stays ignored.
    before = {
      x: signal.signal(x, self.receive)
      for x in _SIGNALS
      if signal.getsignal(x) is not signal.SIG_IGN
    }
    try:
      yield self
    finally:
      for number, handler in before.items():
        # A process may run several stages, as tests do. One that was asked to
        # stop is about to end, and must not be killed on its way out.
        signal.signal(number, signal.SIG_IGN if self._obeyed else handler)

  def receive(
    self, number: int = signal.SIGTERM, frame: types.FrameType | None = None
  ) -> None:
    """Notes that somebody asked to stop.

    Args:
      number: Number of the signal.
      frame: Where the program was, which a signal handler is called with.
    """
    del frame
    name = signal.Signals(number).name
    if self._received is None:
      self._received = signal.Signals(number)
      text = f"{name}: saving after this step.\n"
    else:
      text = f"{name}: already saving; please wait.\n"
    # Python may be in the middle of a log line, whose lock is not free.
    os.write(2, text.encode())

  def obey(self) -> SystemExit:
    """Returns what ends the process; signals are ignored from now on.

    The exit code is 143 after SIGTERM, by which a scheduler starts the job
    again, 130 after SIGINT and 129 after SIGHUP.
    """
    self._obeyed = True
    # Another process may have got the signal.
    return SystemExit(128 + (self._received or signal.SIGTERM))

  @property
  def reason(self) -> str:
    """Name of the signal."""
    return (self._received or signal.SIGTERM).name

  def pending(self, step: int) -> bool:
    """Returns whether to stop after this step, the same in all processes.

    Args:
      step: The step that was dispatched, counted from 1.
    """
    if jax.process_count() == 1:
      return self._received is not None
    if self._next is not None and step < self._next:
      return False
    # Before two agreements the pace is unknown: the next step agrees again.
    pace = self._within
    if self._next is not None:
      before, then = self._last
      pace = (self._clock() - then) / max(step - before, 1)
    stop, slowest = self._agree(self._received is not None, pace)
    self._last = (step, self._clock())
    # Two agreements within one tick of the clock have the pace 0, by which
    # nothing may be divided.
    self._next = step + max(1, int(self._within / max(slowest, 1e-6)))
    return stop
