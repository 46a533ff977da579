"""Joins the processes of one run, and ends one of them after a failure."""

from collections.abc import Mapping
import os
import sys
import types
from typing import NoReturn

from absl import logging
import jax

from videomla_jax.runtime import scheduler

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def initialize() -> None:
  """Joins the processes of this run, where there is more than one.

  It must be called before the first computation; a second call does nothing.
  The devices of several CPU processes talk through gloo, as JAX has it.

  Raises:
    ValueError: If the environment says half of what is needed.
  """
  if jax.distributed.is_initialized():
    return
  group = scheduler.find(os.environ)
  if group is None or group.num_processes == 1:
    return
  os.environ.update(without_proxy(os.environ))
  # The service would take SIGTERM for itself, and nobody could save upon it.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(**group.arguments())
  # The others wait in a collective for a process that fails, and an ordinary
  # end waits for the others.
  sys.excepthook = _end_at_once
  logging.info("joined the other processes, by %s", group.source)


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
  """Returns variables that keep connections inside this machine off a proxy.

  The processes of a run on one machine talk to each other; a proxy that
  `http_proxy` names cannot reach them, and they would wait for ever.

  Args:
    environment: Names and values so far.
  """
  changed = {}
  # Programs look at either spelling.
  for name in ("no_proxy", "NO_PROXY"):
    hosts = [x.strip() for x in environment.get(name, "").split(",")]
    hosts += [x for x in _LOOPBACK if x not in hosts]
    changed[name] = ",".join(filter(None, hosts))
  # gRPC asks for this one first.
  own = environment.get("no_grpc_proxy")
  if own:
    changed["no_grpc_proxy"] = ",".join([own, *_LOOPBACK])
  return changed


def missing_device() -> RuntimeError | None:
  """Returns what JAX says if it cannot use the devices that it is told to use.

  It is asked after another error only: libraries that meet this one report
  something else, and on a machine with a GPU the question takes seconds.
  """
  # Without the variable JAX takes what there is. Of several processes one that
  # asks alone would wait for the others.
  if not os.environ.get("JAX_PLATFORMS") or jax.distributed.is_initialized():
    return None
  try:
    jax.devices()
  except RuntimeError as error:
    return error
  except AssertionError:  # what JAX raises when it is asked again
    return RuntimeError("Unable to initialize backend")
  return None


def leave(code: int) -> NoReturn:
  """Ends the process after a failure, without waiting for the others.

  An ordinary end waits up to five minutes for the ends of all processes, and
  those that wait for this one in a collective never end.

  Args:
    code: Exit code, which is not 0.
  """
  if not jax.distributed.is_initialized():
    sys.exit(code)
  # `os._exit` skips what Python does at an end: the wait for the others, but
  # the flushes, too.
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _end_at_once(
  kind: type[BaseException],
  error: BaseException,
  trace: types.TracebackType | None,
) -> None:
  """Prints an error that nobody handled, and ends the process with it."""
  sys.__excepthook__(kind, error, trace)
  # 128 + SIGINT is the code with which a shell reports Ctrl-C.
  leave(130 if issubclass(kind, KeyboardInterrupt) else 1)
