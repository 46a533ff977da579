"""Starts one command as several processes on this machine, with CPU devices.

  python -m videomla_jax.runtime.launch_local --processes=2 --devices=4 -- \
    -m videomla_jax.train --config=configs/teacher_forcing.py:small,runlocal \
    --workdir=runs/two

runs `python -m videomla_jax.train ...` twice, as two hosts of four devices
would. Each line of output begins with the number of its process. SIGTERM and
SIGINT are passed on. When a process fails the others are ended, and its exit
code is that of the launcher.
"""

import argparse
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
from typing import NamedTuple, NoReturn

from videomla_jax.runtime import cli
from videomla_jax.runtime import distributed

_PASSED_ON = (signal.SIGTERM, signal.SIGINT)
_DEVICES_FLAG = "--xla_force_host_platform_device_count="


class _Ended(NamedTuple):
  """A process came to its end."""

  process: int


class _Asked(NamedTuple):
  """The launcher got a signal."""

  number: int


def process_environment(
  environment: Mapping[str, str],
  *,
  index: int,
  processes: int,
  devices: int,
  port: int,
) -> dict[str, str]:
  """Returns the environment of one process.

  Args:
    environment: What all processes inherit.
    index: Number of this process.
    processes: Number of processes.
    devices: CPU devices of each.
    port: Free port of this machine, for process 0.
  """
  flags = [
    x
    for x in environment.get("XLA_FLAGS", "").split()
    if not x.startswith(_DEVICES_FLAG)
  ]
  address = f"127.0.0.1:{port}"
  return {
    **environment,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": " ".join([*flags, f"{_DEVICES_FLAG}{devices}"]),
    # Nobody else needs to reach it.
    "JAX_COORDINATOR_BIND_ADDRESS": address,
    "PYTHONUNBUFFERED": "1",
    distributed.COORDINATOR: address,
    distributed.NUM_PROCESSES: str(processes),
    distributed.PROCESS_ID: str(index),
  }


def launch(
  command: Sequence[str],
  *,
  processes: int,
  devices: int,
  grace_seconds: float | int = 30,
) -> int:
  """Runs a command as several processes and waits for all.

  Must be called by the main thread, since it listens to signals.

  Args:
    command: Program and arguments; no shell sees them.
    processes: Number of processes, at least 1.
    devices: CPU devices of each, at least 1.
    grace_seconds: From SIGTERM, passed on or sent because a process failed, to
      SIGKILL.

  Returns:
    0, or the exit code of the first process that was seen to fail (128 + the
    number of the signal that ended it).

  Raises:
    ValueError: If a number is out of range or the program cannot be started.
  """
  _check(command, processes, devices, grace_seconds)
  events: queue.SimpleQueue[_Ended | _Asked] = queue.SimpleQueue()
  with _signals(events.put):
    group = _Group(
      command,
      _environments(processes, devices),
      events.put,
    )
    return _supervise(group, events, grace_seconds)


@contextlib.contextmanager
def _signals(tell: Callable[[_Asked], None]) -> Iterator[None]:
  """Tells of signals, also of those that do not wake the main thread.

  Handlers written in Python run between two steps of the main thread: one whose
  signal comes just before that thread waits, or meets another thread, would
  run when the wait is over. The number of the signal is written to the wakeup
  file at once, whatever the main thread does.
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
  """The running processes, each in a session of its own.

  Only the main thread signals and reaps, so no signal can meet a number that
  the system has given to another process.
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
    """Sends a signal to the processes that run; SIGKILL to their children."""
    for process in self.running.values():
      if number == signal.SIGKILL:
        os.killpg(process.pid, number)
      else:
        os.kill(process.pid, number)

  def reap(self, index: int) -> int:
    """Ends what a process left behind and returns its exit code."""
    process = self.running.pop(index)
    os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    return code if code >= 0 else 128 - code

  def finish_output(self) -> None:
    """Waits for the last lines, but not for what hides in another session."""
    for thread in self._threads:
      thread.join(timeout=10)

  def _start(
    self, command: Sequence[str], environment: Mapping[str, str]
  ) -> subprocess.Popen[bytes]:
    try:
      return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Ctrl-C reaches the launcher only, which passes it on once.
        start_new_session=True,
      )
    except OSError as error:
      self.send(signal.SIGKILL)
      raise ValueError(
        f"{command[0]!r} cannot be started ({error.strerror}); name a program."
      ) from error

  def _read(self, index: int, process: subprocess.Popen[bytes]) -> None:
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
      # Who asks twice does not want to wait.
      number = signal.SIGKILL if stopping else event.number
    if number is not None:
      group.send(number)
      if not stopping:
        stopping, deadline = True, time.monotonic() + grace_seconds
  group.finish_output()
  return result


def _environments(processes: int, devices: int) -> list[dict[str, str]]:
  port = _free_port()
  return [
    process_environment(
      os.environ, index=index, processes=processes, devices=devices, port=port
    )
    for index in range(processes)
  ]


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def _check(
  command: Sequence[str],
  processes: int,
  devices: int,
  grace_seconds: float | int,
) -> None:
  for name, value in (("processes", processes), ("devices", devices)):
    if value < 1:
      raise ValueError(f"{name}={value} must be at least 1; use --{name}=2.")
  if not grace_seconds >= 0:
    raise ValueError(
      f"grace_seconds={grace_seconds} must be 0 or more; use 30."
    )
  if not command:
    raise ValueError("the command is missing; give it after --.")


class _Parser(argparse.ArgumentParser):
  """Says mistakes as all entry points do."""

  def error(self, message: str) -> NoReturn:
    raise ValueError(f"{message}; see --help.")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = _Parser(
    prog="python -m videomla_jax.runtime.launch_local",
    description="Starts python with these arguments as several processes.",
  )
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--devices", type=int, default=4, help="of each process")
  parser.add_argument("--grace_seconds", type=float, default=30)
  parser.add_argument("arguments", nargs="*", help="of python, after --")
  return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
  """Runs the command line and returns the exit code."""
  options = _parse(argv)
  if not options.arguments:
    raise ValueError(
      "the arguments of python are missing; give them after --, such as "
      "-- -m videomla_jax.train --config=configs/NAME.py --workdir=FOLDER."
    )
  return launch(
    [sys.executable, *options.arguments],
    processes=options.processes,
    devices=options.devices,
    grace_seconds=options.grace_seconds,
  )


if __name__ == "__main__":
  try:
    sys.exit(main(sys.argv[1:]))
  except ValueError as error:
    cli.fail(error)
