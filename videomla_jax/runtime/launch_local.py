"""Starts one command as several processes on this machine, with CPU devices.

  python -m videomla_jax.runtime.launch_local --processes=2 --devices=4 -- \
    -m videomla_jax.train --config=configs/teacher_forcing.py:small,runlocal \
    --workdir=runs/two

runs `python -m videomla_jax.train ...` twice, as two hosts of four devices
would. Each line of output begins with the number of its process. SIGTERM and
SIGINT are passed on. When one process fails, the others are ended, and the
launcher ends with its exit code.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import os
import socket
import sys
from typing import NoReturn

from videomla_jax.runtime import cli
from videomla_jax.runtime import distributed
from videomla_jax.runtime import scheduler
from videomla_jax.runtime import supervisor

_MOST = 1024  # processes or devices of one machine
_DAY = 24 * 3600
_DEVICES_FLAG = "--xla_force_host_platform_device_count="


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
    environment: Names and values that all processes inherit.
    index: Number of this process, from 0.
    processes: Number of processes.
    devices: Number of CPU devices of each process.
    port: Free port of this machine, on which process 0 listens.
  """
  # A number of devices that is already set would contradict ours.
  flags = [
    x
    for x in environment.get("XLA_FLAGS", "").split()
    if not x.startswith(_DEVICES_FLAG)
  ]
  address = f"127.0.0.1:{port}"
  return {
    **environment,
    **distributed.without_proxy(environment),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": " ".join([*flags, f"{_DEVICES_FLAG}{devices}"]),
    # No other machine needs to reach process 0.
    "JAX_COORDINATOR_BIND_ADDRESS": address,
    # The last lines of a process that is killed would be lost otherwise.
    "PYTHONUNBUFFERED": "1",
    scheduler.COORDINATOR: address,
    scheduler.NUM_PROCESSES: str(processes),
    scheduler.PROCESS_ID: str(index),
  }


def launch(
  command: Sequence[str],
  *,
  processes: int,
  devices: int,
  grace_seconds: float | int = 30,
) -> int:
  """Runs a command as several processes and waits for all.

  It must be called by the main thread, since it listens to signals.

  Args:
    command: Program and arguments; no shell sees them.
    processes: Number of processes, at least 1.
    devices: Number of CPU devices of each process, at least 1.
    grace_seconds: Time from SIGTERM, passed on or sent because a process
      failed, to SIGKILL.

  Returns:
    0, or the exit code of the first process that was seen to fail (128 + the
    number of the signal that ended it).

  Raises:
    ValueError: If a number is out of range or the program cannot be started.
  """
  _check(command, processes, devices, grace_seconds)
  environments = _environments(processes, devices)
  return supervisor.run_together(
    command, environments, grace_seconds=grace_seconds
  )


def _environments(processes: int, devices: int) -> list[dict[str, str]]:
  """Returns the environment of every process."""
  port = _free_port()
  return [
    process_environment(
      os.environ, index=index, processes=processes, devices=devices, port=port
    )
    for index in range(processes)
  ]


def _free_port() -> int:
  """Asks the system for a port that nobody uses now."""
  # Another program may take the port before process 0 does. Then process 0
  # fails, and the launcher with it.
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def _check(
  command: Sequence[str],
  processes: int,
  devices: int,
  grace_seconds: float | int,
) -> None:
  """Refuses numbers out of range and a missing command."""
  for name, value in (("processes", processes), ("devices", devices)):
    if value < 1:
      raise ValueError(f"{name}={value} must be at least 1; use --{name}=2.")
    if value > _MOST:
      raise ValueError(f"{name}={value} must be at most {_MOST}; use 2.")
  if not 0 <= grace_seconds <= _DAY:
    raise ValueError(
      f"grace_seconds={grace_seconds} must be 0 or more, and at most a day; use"
      " 30."
    )
  if not command:
    raise ValueError("the command is missing; give it after --.")


class _Parser(argparse.ArgumentParser):
  """Reports mistakes as all commands do."""

  def error(self, message: str) -> NoReturn:
    """Raises as `ValueError` what argparse would print."""
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
  """Runs the command line and returns the exit code.

  Args:
    argv: Arguments of the command line.

  Raises:
    ValueError: If an argument is wrong.
  """
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
  # Signals are passed on; they end this process when its children have ended.
  except (Exception, KeyboardInterrupt) as error:
    cli.fail(error)
