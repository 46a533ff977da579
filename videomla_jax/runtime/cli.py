"""How every command starts, and how it reports mistakes of the user."""

from collections.abc import Callable
from collections.abc import Sequence
import sys
from typing import Any

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from videomla_jax.runtime import config_files
from videomla_jax.runtime import distributed

# Mistakes of the user. Any other error is a fault of ours and keeps its
# traceback.
USER_ERRORS = (ValueError, NotImplementedError)

# Flags raise many kinds of errors, and a config file, which is Python, any.
_FLAG_ERRORS = (
  flags.Error,
  AttributeError,
  KeyError,
  OSError,
  SyntaxError,
  TypeError,
  *USER_ERRORS,
)


class _ConfigParser(flags.ArgumentParser):
  """Finds a config file before another parser loads it."""

  def __init__(self, loader: flags.ArgumentParser) -> None:
    """Stores the parser that loads `PATH[:ARGUMENTS]`."""
    self._loader = loader

  # `Any` is what absl's flags hold.
  def parse(self, argument: str) -> Any:
    """Returns the config of `configs/NAME.py[:ARGUMENTS]`."""
    path, colon, arguments = argument.partition(":")
    file = config_files.find_config(path)
    with config_files.importing_from(file.parent):
      return self._loader.parse(f"{file}{colon}{arguments}")

  def flag_type(self) -> str:
    """Returns what --help calls the value of this flag."""
    return "config file"


def fail(error: BaseException) -> None:
  """Prints an error in one line and ends the process with code 2.

  Args:
    error: The user's mistake.
  """
  message = " ".join(str(error).split())
  # It is written at once, since other threads and processes write there, too.
  sys.stderr.write(f"error: {message}\n")
  distributed.leave(2)


def explain(error: BaseException) -> BaseException:
  """Turns what flags and config files raise into a sentence with a way out.

  Args:
    error: What was raised.

  Returns:
    The error to be shown.
  """
  # An error of a config file has the traceback as its text, and the first error
  # as its context.
  while "Traceback" in str(error) and error.__context__ is not None:
    error = error.__context__
  if isinstance(error, OSError):
    return ValueError(
      "the file of --config cannot be read; give its path from the current "
      "folder, such as --config=configs/NAME.py."
    )
  if isinstance(error, (AttributeError, KeyError)):
    name = str(error).strip("'\"")
    return ValueError(
      f"config field {name!r} is unknown; use a field that the config file "
      "sets."
    )
  return error


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses flags and the config file; mistakes end the process."""
  try:
    rest = flags.FLAGS(argv)
    _check_config()
    return rest
  except _FLAG_ERRORS as error:
    fail(explain(error))
  return []


def _check_config() -> None:
  """Refuses a missing config, which would show at its first use only."""
  if "config" not in flags.FLAGS:
    return
  config = flags.FLAGS["config"].value
  if config is None:
    raise ValueError("--config is missing; use --config=configs/NAME.py.")
  # What stands for a file that is missing raises OSError here.
  config.items  # noqa: B018


def run(main: Callable[..., object], *, workdir: bool = False) -> None:
  """Parses flags and calls `main(config)`, or `main(config, workdir)`.

  Bad flags, bad config fields and `ValueError`s give one sentence on standard
  error and exit code 2; there is no traceback to read.

  Args:
    main: What the command does.
    workdir: Whether the command has the flag --workdir.
  """
  config_flags.DEFINE_config_file("config", lock_config=True)
  flag = flags.FLAGS["config"]
  # ml_collections has no place for a search in front of its loader, so its
  # parser is wrapped.
  flag.parser = _ConfigParser(flag.parser)
  if workdir:
    flags.DEFINE_string("workdir", None, "Folder of this run.")

  def call() -> None:
    values = [flags.FLAGS.config]
    if workdir:
      values.append(flags.FLAGS.workdir)
    if None in values[1:]:
      raise ValueError("--workdir is missing; name a folder for this run.")
    main(*values)

  run_flags(call)


def run_flags(main: Callable[[], object]) -> None:
  """Parses flags that are already defined and calls `main()`.

  Args:
    main: What the command does; its errors are shown as by `run`.
  """

  def guarded(argv: Sequence[str]) -> None:
    if len(argv) > 1:
      fail(ValueError(f"unexpected argument {argv[1]!r}; use --name=value."))
    if not flags.FLAGS["verbosity"].present:
      # Libraries report every step of a checkpoint, which --verbosity=0 shows.
      logging.set_verbosity(logging.WARNING)
    try:
      main()
    except USER_ERRORS as error:
      fail(error)

  app.run(guarded, flags_parser=_parse)
