"""Runs several processes of this machine together until all have ended.

Each line of their output begins with the number of its process. SIGTERM and
SIGINT are passed on, and when one process fails the others are ended.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import NamedTuple

_PASSED_ON = (signal.SIGTERM, signal.SIGINT)


class _Ended(NamedTuple):
  """The event that a process has ended."""

  process: int


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
  events: queue.SimpleQueue[_Ended | _Asked] = queue.SimpleQueue()
  with _signals(events.put):
    group = _Group(command, environments, events.put)
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
  writer.setblocking(False)

  def read() -> None:
    while number := reader.recv(1):
      if number[0] in _PASSED_ON:
        tell(_Asked(number[0]))

  thread = threading.Thread(target=read, daemon=True)
  with reader, writer:
    wakeup = signal.set_wakeup_fd(writer.fileno())
    previous = {n: signal.signal(n, lambda *_: None) for n in _PASSED_ON}
    thread.start()
    try:
      yield
    finally:
      for number, handler in previous.items():
        signal.signal(number, handler)
      signal.set_wakeup_fd(wakeup)
      writer.shutdown(socket.SHUT_WR)
      thread.join()


class _Group:
  """The running processes, each in its own session.

  Only the main thread sends signals and reaps processes, so that no signal can
  hit another process to which the system has given the same number.
  """

  def __init__(
    self,
    command: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    tell: Callable[[_Ended], None],
  ) -> None:
    self._lock = threading.Lock()
    self._threads: list[threading.Thread] = []
    self.running: dict[int, subprocess.Popen[bytes]] = {}
    for index, environment in enumerate(environments):
      process = self._start(command, environment)
      self.running[index] = process
      for work in (
        lambda i=index, p=process: self._read(i, p),
        lambda i=index, p=process: self._wait(i, p, tell),
      ):
        self._threads.append(threading.Thread(target=work, daemon=True))
        self._threads[-1].start()

  def send(self, number: int) -> None:
    """Sends a signal to all processes, and SIGKILL to their children, too."""
    for process in self.running.values():
      if number == signal.SIGKILL:
        os.killpg(process.pid, number)
      else:
        os.kill(process.pid, number)

  def reap(self, index: int) -> int:
    """Ends the children that a process left, and returns its exit code."""
    process = self.running.pop(index)
    # Before `wait`, which frees the number of the process and of its group.
    os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    return code if code >= 0 else 128 - code

  def finish_output(self) -> None:
    """Waits for the last lines, but not for processes in other sessions."""
    for thread in self._threads:
      thread.join(timeout=10)

  def _start(
    self, command: Sequence[str], environment: Mapping[str, str]
  ) -> subprocess.Popen[bytes]:
    """Starts one process; if that fails, the others are killed."""
    try:
      return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Ctrl-C then reaches only this process, which passes it on once.
        start_new_session=True,
      )
    except OSError as error:
      self.send(signal.SIGKILL)
      raise ValueError(
        f"{command[0]!r} cannot be started ({error.strerror}); name a program."
      ) from error

  def _read(self, index: int, process: subprocess.Popen[bytes]) -> None:
    """Prints the lines of a process behind its number."""
    assert process.stdout is not None
    for line in process.stdout:
      with self._lock:
        output = sys.stdout.buffer
        output.write(f"[{index}] ".encode() + line.rstrip(b"\n") + b"\n")
        output.flush()

  def _wait(
    self,
    index: int,
    process: subprocess.Popen[bytes],
    tell: Callable[[_Ended], None],
  ) -> None:
    """Tells when a process has ended, without reaping it."""
    # WNOWAIT leaves reaping to the main thread, so that the number of the
    # process stays taken until then.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    tell(_Ended(index))


def _supervise(
  group: _Group,
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
      deadline = None
      continue
    if isinstance(event, _Ended):
      code = group.reap(event.process)
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
