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
from collections.abc import Mapping
from collections.abc import Sequence
import os
import socket
import sys
from typing import NoReturn

from videomla_jax.runtime import cli
from videomla_jax.runtime import scheduler
from videomla_jax.runtime import supervisor

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
  environments = _environments(processes, devices)
  return supervisor.run_together(
    command, environments, grace_seconds=grace_seconds
  )


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
