"""Runs several processes of this machine together until all have ended.

Each line of their output begins with the number of its process. SIGTERM and
SIGINT are passed on, and when one process fails the others are ended.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import queue
import signal
import socket
import threading
import time
from typing import NamedTuple

from videomla_jax.runtime import process_group

_PASSED_ON = (signal.SIGTERM, signal.SIGINT)


class _Asked(NamedTuple):
  """The event that this process has received a signal."""

  number: int


def run_together(
  command: Sequence[str],
  environments: Sequence[Mapping[str, str]],
  *,
  grace_seconds: float | int,
) -> int:
  """Starts a command once for each environment and waits for all of them.

  It must be called by the main thread, since it listens to signals.

  Args:
    command: Program and arguments; no shell sees them.
    environments: Names and values of each process.
    grace_seconds: Time from SIGTERM, passed on or sent because a process
      failed, to SIGKILL.

  Returns:
    0, or the exit code of the first process that was seen to fail (128 + the
    number of the signal that ended it).

  Raises:
    ValueError: If the program cannot be started.
  """
  events: queue.SimpleQueue[process_group.Ended | _Asked] = queue.SimpleQueue()
  with _signals(events.put):
    group = process_group.Group(command, environments, events.put)
    return _supervise(group, events, grace_seconds)


@contextlib.contextmanager
def _signals(tell: Callable[[_Asked], None]) -> Iterator[None]:
  """Tells of signals at once, even while the main thread waits.

  Python runs handlers between two steps of the main thread. If a signal comes
  just before that thread begins to wait, or is delivered to another thread, its
  handler runs when the wait is over. The number of the signal, however, is
  written to the wakeup file at once, and a thread reads it there.

  Args:
    tell: Is called with every signal, by another thread.
  """
  reader, writer = socket.socketpair()
  # `set_wakeup_fd` takes no file that blocks.
  writer.setblocking(False)

  def read() -> None:
    while number := reader.recv(1):
      if number[0] in _PASSED_ON:
        tell(_Asked(number[0]))

  thread = threading.Thread(target=read, daemon=True)
  with reader, writer:
    wakeup = signal.set_wakeup_fd(writer.fileno())
    # Python writes only signals that have a handler, even one that does
    # nothing.
    previous = {n: signal.signal(n, lambda *_: None) for n in _PASSED_ON}
    thread.start()
    try:
      yield
    finally:
      for number, handler in previous.items():
        signal.signal(number, handler)
      signal.set_wakeup_fd(wakeup)
      # The reader then receives nothing, which ends its thread.
      writer.shutdown(socket.SHUT_WR)
      thread.join()


def _supervise(
  group: process_group.Group,
  events: "queue.SimpleQueue[_Ended | _Asked]",
  grace_seconds: float | int,
) -> int:
  """Handles ends and signals until no process runs."""
  result, stopping, deadline = 0, False, None
  while group.running:
    left = None if deadline is None else max(0, deadline - time.monotonic())
    try:
      event = events.get(timeout=left)
    except queue.Empty:
      group.send(signal.SIGKILL)
      # Nothing stronger than SIGKILL is left, so there is no further deadline.
      deadline = None
      continue
    if isinstance(event, process_group.Ended):
      code = group.reap(event.process)
      # The first failure counts: those that follow come from our own SIGTERM.
      result = result or code
      number = signal.SIGTERM if result and not stopping else None
    else:
      # A second signal means that the user does not want to wait.
      number = signal.SIGKILL if stopping else event.number
    if number is not None:
      group.send(number)
      if not stopping:
        stopping, deadline = True, time.monotonic() + grace_seconds
  group.finish_output()
  return result
