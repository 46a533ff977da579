"""Child processes that live and end together."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import os
import signal
import subprocess
import sys
import threading
from typing import NamedTuple


class Ended(NamedTuple):
  """The event that a process has ended."""

  process: int


class Group:
  """The running processes, each in its own session.

  Only the main thread sends signals and reaps processes, so that no signal can
  hit another process to which the system has given the same number.
  """

  def __init__(
    self,
    command: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    tell: Callable[[Ended], None],
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
      # A process that is asked to stop ends its children itself; one that is
      # killed cannot.
      if number == signal.SIGKILL:
        os.killpg(process.pid, number)
      else:
        os.kill(process.pid, number)

  def reap(self, index: int) -> int:
    """Ends the children that a process left, and returns its exit code."""
    process = self.running.pop(index)
    # This comes before `wait`, which frees the number of the process and of its
    # group.
    os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    # Python gives a signal as a negative code, and shells add it to 128.
    return code if code >= 0 else 128 - code

  def finish_output(self) -> None:
    """Waits for the last lines, but not for processes in other sessions."""
    for thread in self._threads:
      # Such a process may hold the pipe open for ever.
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
        # A last line without a newline would swallow the number of the next.
        output.write(f"[{index}] ".encode() + line.rstrip(b"\n") + b"\n")
        output.flush()

  def _wait(
    self,
    index: int,
    process: subprocess.Popen[bytes],
    tell: Callable[[Ended], None],
  ) -> None:
    """Tells when a process has ended, without reaping it."""
    # WNOWAIT leaves reaping to the main thread, so that the number of the
    # process stays taken until then.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    tell(Ended(index))
