"""Keeps compiled programs on disk, and counts what compiling took.

A chunk step takes XLA a quarter of a minute and more. Where programs are kept,
a second start on the same machine loads them. They are code that JAX runs, so
their folder must belong to whoever starts the command, and to nobody else.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import importlib.util
import os
import pathlib
import stat

import jax
from jax import monitoring

from videomla_jax.storage import paths

AUTO, OFF = "auto", "off"
MAX_BYTES = 4 * 2**30  # those used least recently go first
_COMPILED = "/jax/core/compile/backend_compile_duration"


def _has_gpu() -> bool:
  """Tells whether JAX would compile for a GPU, without starting it.

  The processes of a run must join before the first device is asked for.
  """
  # The first platform of the list is the one that computes.
  platform = (jax.config.jax_platforms or "cuda").split(",")[0]
  plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
  return (
    platform in ("cuda", "gpu")
    and any(map(importlib.util.find_spec, plugins))
    and any(pathlib.Path("/dev").glob("nvidia[0-9]*"))
  )


def default_folder(environment: Mapping[str, str]) -> pathlib.Path:
  """Returns the folder of programs in the user's cache.

  Args:
    environment: Names and values, of which XDG_CACHE_HOME and HOME are read.
  """
  home = environment.get("HOME") or str(pathlib.Path.home())
  # A path that is not absolute is to be ignored, says its specification.
  cache = environment.get("XDG_CACHE_HOME", "")
  base = pathlib.Path(cache if os.path.isabs(cache) else f"{home}/.cache")
  return base / "videomla_jax" / "programs"


def keep(choice: str = AUTO) -> str:
  """Keeps what is compiled from now on, and finds what was kept.

  JAX_COMPILATION_CACHE_DIR, if it is set, is left alone unless a folder is
  named here.

  Args:
    choice: "auto" keeps programs of GPUs in the user's cache, where that is
      possible; "off" keeps none, anything else is a folder for the programs of
      any device.

  Returns:
    What to tell the user, without a full stop; empty where there is nothing.

  Raises:
    ValueError: If a folder is named that cannot be made, or into which others
      may write.
  """
  if choice == OFF:
    jax.config.update("jax_enable_compilation_cache", False)
    return ""
  if choice != AUTO:
    return _keep_in(pathlib.Path(paths.local(choice, "programs")))
  if jax.config.jax_compilation_cache_dir or not _has_gpu():
    return ""
  try:
    return _keep_in(default_folder(os.environ))
  except ValueError as error:
    # Nobody asked for it, so nothing else has to fail: a home may be read-only.
    return f"compiled programs are not kept: {str(error).rstrip('.')}"


def _keep_in(folder: pathlib.Path) -> str:
  """Keeps programs in a folder, and says so."""
  _make_private(folder)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # JAX counts the bytes of a folder under a lock of the package `filelock`.
  jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
  # By itself JAX keeps what took more than a second.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  return f"compiled programs are kept in {folder}"


def _make_private(folder: pathlib.Path) -> None:
  """Makes a folder, and refuses one into which others may write.

  Raises:
    ValueError: If it cannot be made, or is not the user's alone.
  """
  way_out = "name another one with --programs=FOLDER, or none with off"
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(
      f"programs={str(folder)!r} cannot be made ({error.strerror}); {way_out}."
    ) from error
  about = folder.stat()
  if about.st_uid != os.getuid() or about.st_mode & (
    stat.S_IWGRP | stat.S_IWOTH
  ):
    raise ValueError(
      f"programs={str(folder)!r} holds code that would be run, and others may "
      f"write into it; take their right away, or {way_out}."
    )


class Clock:
  """Seconds that XLA has spent on compiling or loading programs."""

  def __init__(self) -> None:
    self.seconds = 0.0


@contextlib.contextmanager
def clock() -> Iterator[Clock]:
  """Counts the seconds of compilation within a block."""
  counted = Clock()

  def add(event: str, duration_secs: float, **about: str | int) -> None:
    del about
    if event == _COMPILED:
      counted.seconds += duration_secs

  monitoring.register_event_duration_secs_listener(add)
  try:
    yield counted
  finally:
    monitoring.unregister_event_duration_listener(add)
