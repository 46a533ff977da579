"""Signals that ask a command to stop, as exceptions that clean up.

SIGINT (Ctrl-C), SIGTERM (a scheduler) and SIGHUP (a closed terminal) raise
`Interrupted` once; what comes while files are removed or finished changes
nothing. `training.interrupts` catches signals itself while a run is going on.
"""

from collections.abc import Iterator
import contextlib
import signal
import types

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
  """Somebody asked this process to stop.

  Libraries know `KeyboardInterrupt` and let it through.
  """

  def __init__(self, number: int) -> None:
    """Stores the signal.

    Args:
      number: Number of the signal.
    """
    self.number = signal.Signals(number)
    super().__init__(f"stopped by {self.number.name}")

  @property
  def code(self) -> int:
    """Exit code with which a shell reports the signal."""
    return 128 + self.number


class _State:
  """The signal that came, and whether it has to wait.

  Attributes:
    received: The first signal.
    holds: Blocks of `held` that are open.
  """

  received: int | None = None
  holds: int = 0


_state = _State()


def _receive(number: int, frame: types.FrameType | None) -> None:
  """Raises for the first signal, unless it has to wait."""
  del frame
  if _state.received is not None:
    return  # The first one is being dealt with.
  _state.received = number
  if not _state.holds:
    raise Interrupted(number)


def install() -> None:
  """Lets signals raise `Interrupted` from now on.

  What was ignored before, as by `nohup`, stays ignored.
  """
  for number in _NUMBERS:
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, _receive)


@contextlib.contextmanager
def raised() -> Iterator[None]:
  """Lets signals raise `Interrupted` while the block runs.

  It is for the main thread, the only one where Python lets anybody listen.
  """
  before = {number: signal.getsignal(number) for number in _NUMBERS}
  # What came before the block is none of its business.
  _state.received, _state.holds = None, 0
  install()
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    _state.received, _state.holds = None, 0


def ignore() -> None:
  """Makes the process deaf to these signals, since it ends now anyway."""
  for number in _NUMBERS:
    signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def held() -> Iterator[None]:
  """Lets a step come to its end; a signal is raised after it."""
  _state.holds += 1
  try:
    yield
  finally:
    _state.holds -= 1
  check()


def check() -> None:
  """Raises `Interrupted` if a signal came and somebody swallowed it.

  Python drops exceptions that are raised while objects are freed, so long loops
  ask now and then.
  """
  if _state.received is not None and not _state.holds:
    raise Interrupted(_state.received)
