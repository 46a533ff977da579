"""Joins the processes of one run, and ends one of them after a failure."""

import os
import sys
import types
from typing import NoReturn

from absl import logging
import jax

from videomla_jax.runtime import scheduler


def initialize() -> None:
  """Joins the processes of this run; does nothing where there is only one.

  Must come before the first computation. A second call does nothing. Devices
  of several CPU processes talk through gloo, which is JAX's default.

  Raises:
    ValueError: If the environment says half of what is needed.
  """
  if jax.distributed.is_initialized():
    return
  group = scheduler.find(os.environ)
  if group is None or group.num_processes == 1:
    return
  # It would take SIGTERM away from whoever wants to save, and from Python.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(**group.arguments())
  sys.excepthook = _end_at_once
  logging.info("joined the other processes, by %s", group.source)


def leave(code: int) -> NoReturn:
  """Ends the process after a failure, without waiting for the others.

  An ordinary end waits up to five minutes until all processes end, and those
  that wait for this one in a collective never do.

  Args:
    code: Exit code, not 0.
  """
  if not jax.distributed.is_initialized():
    sys.exit(code)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _end_at_once(
  kind: type[BaseException],
  error: BaseException,
  trace: types.TracebackType | None,
) -> None:
  """What an error that nobody handled does in one of several processes."""
  sys.__excepthook__(kind, error, trace)
  leave(130 if issubclass(kind, KeyboardInterrupt) else 1)
