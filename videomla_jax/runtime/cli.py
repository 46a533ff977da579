"""How every command starts and ends: flags, messages, exit codes.

`failures` lists the exit codes. A command that fails says why in one sentence;
--verbosity=1 adds the traceback.
"""

from collections.abc import Callable
from collections.abc import Sequence
import re
import sys
import traceback
from typing import Any
import warnings

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from videomla_jax.runtime import compiled_programs
from videomla_jax.runtime import config_files
from videomla_jax.runtime import distributed
from videomla_jax.runtime import failures
from videomla_jax.runtime import signals
from videomla_jax.runtime import terminal
from videomla_jax.storage import paths

USER_ERRORS = failures.USER_ERRORS


class _ConfigParser(flags.ArgumentParser):
  """Finds a config file before another parser loads it."""

  def __init__(self, loader: flags.ArgumentParser) -> None:
    """Stores the parser that loads `PATH[:ARGUMENTS]`."""
    self._loader = loader

  # `Any` is what absl's flags hold.
  def parse(self, argument: str) -> Any:
    """Returns the config of `configs/NAME.py[:ARGUMENTS]`."""
    argument = paths.local(argument, "config")
    path, colon, arguments = argument.partition(":")
    file = config_files.find_config(path)
    with config_files.importing_from(file.parent):
      return self._loader.parse(f"{file}{colon}{arguments}")

  def flag_type(self) -> str:
    """Returns what --help calls the value of this flag."""
    return "config file"


def fail(error: BaseException) -> None:
  """Prints an error in one line and ends the process with its exit code.

  Args:
    error: What ended the command, see `failures`.
  """
  failure = failures.describe(error)
  prefix = "" if isinstance(error, KeyboardInterrupt) else "error: "
  # It is written at once, since other threads and processes write there, too.
  if sys.stderr is not None:
    sys.stderr.write(f"{prefix}{terminal.sentence(failure.sentence)}\n")
  distributed.leave(failure.code)


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
  if isinstance(error, (*USER_ERRORS, flags.Error)) and " " in str(error):
    return ValueError(str(error))
  # A config file is Python, which may raise anything.
  return ValueError(
    f"the flags or the config file cannot be read: {type(error).__name__}:"
    f" {error}; correct what this names."
  )


def parse(argv: Sequence[str]) -> list[str]:
  """Parses flags and the config file.

  Args:
    argv: Name of the program and its arguments.

  Returns:
    What is no flag, behind the name of the program.

  Raises:
    ValueError: If an argument, a flag or the config file is wrong.
  """
  try:
    check_arguments(argv[1:])
    argv, unset = _split_unset(argv)
    with warnings.catch_warnings():
      # A value such as 1_ is tried as Python, which would warn of it.
      warnings.simplefilter("ignore", SyntaxWarning)
      rest = flags.FLAGS(argv)
    _check_config()
    _unset(unset)
  # Python that a user wrote runs here, and parsers of other libraries.
  except Exception as error:
    raise explain(error) from error
  if len(rest) > 1:
    raise ValueError(f"unexpected argument {rest[1]!r}; use --name=value.")
  return rest


def check_arguments(arguments: Sequence[str]) -> None:
  """Refuses what no flag can mean.

  Args:
    arguments: What stands behind the name of the program.

  Raises:
    ValueError: If one is not UTF-8, or a flag has two values.
  """
  given: dict[str, str] = {}
  for argument in arguments:
    # Python reads bytes that are not UTF-8 as halves of a pair.
    if any("\ud800" <= x <= "\udfff" for x in argument):
      raise ValueError(f"argument {argument!r} is not UTF-8; encode it again.")
    if argument == "--":
      return
    name, equals, value = argument.partition("=")
    if equals and given.setdefault(name.strip("-"), value) != value:
      raise ValueError(
        f"flag {name} is given twice, as {given[name.strip('-')]!r} and as"
        f" {value!r}; give it once."
      )


def _split_unset(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Takes out what sets a key of the config to None.

  Parsers of numbers do not know None, by which a key is left unset.

  Args:
    argv: Name of the program and its arguments.

  Returns:
    The other arguments, and the keys.
  """
  if "config" not in flags.FLAGS:
    return [*argv], []
  keys = [re.fullmatch(r"--?config\.(\S+)=None", x) for x in argv]
  pairs = list(zip(argv, keys, strict=True))
  return [x for x, key in pairs if not key], [key[1] for _, key in pairs if key]


def _unset(keys: Sequence[str]) -> None:
  """Sets keys of the config to None, but texts to the word.

  Args:
    keys: Names such as `optim.final_fraction`.
  """
  for name in keys:
    group: Any = flags.FLAGS["config"].value
    *groups, key = name.split(".")
    for x in groups:
      group = group.get(x) if hasattr(group, "items") else None
    if not hasattr(group, "items") or key not in group:
      raise KeyError(name)  # as parsers of flags do
    group[key] = "None" if isinstance(group[key], str) else None


def _check_config() -> None:
  """Refuses a missing config, which would show at its first use only."""
  if "config" not in flags.FLAGS:
    return
  config = flags.FLAGS["config"].value
  if config is None:
    raise ValueError("--config is missing; use --config=configs/NAME.py.")
  # What stands for a file that is missing raises OSError here.
  config.items  # noqa: B018


def define(*, workdir: bool = False) -> None:
  """Defines the flags --config, --programs and, if it is wanted, --workdir.

  Args:
    workdir: Whether the command has the flag --workdir.
  """
  config_flags.DEFINE_config_file(
    "config", lock_config=True, flag_values=flags.FLAGS
  )
  flag = flags.FLAGS["config"]
  # ml_collections has no place for a search in front of its loader, so its
  # parser is wrapped.
  flag.parser = _ConfigParser(flag.parser)
  flags.DEFINE_string(
    "programs",
    compiled_programs.AUTO,
    "Folder in which compiled programs are kept for the next start; 'auto' "
    "keeps those of GPUs in the user's cache folder, 'off' keeps none.",
    flag_values=flags.FLAGS,
  )
  if workdir:
    flags.DEFINE_string(
      "workdir", None, "Folder of this run.", flag_values=flags.FLAGS
    )


def given(*, workdir: bool = False) -> list[Any]:
  """Returns the parsed values of the flags of `define`.

  Args:
    workdir: Whether the command has the flag --workdir.

  Raises:
    ValueError: If the folder is missing or not on this machine.
  """
  values = [flags.FLAGS.config]
  if workdir:
    if not flags.FLAGS.workdir:
      raise ValueError("--workdir is missing; name a folder for this run.")
    values.append(paths.local(flags.FLAGS.workdir, "workdir"))
  return values


def run(main: Callable[..., object], *, workdir: bool = False) -> None:
  """Parses flags and calls `main(config)`, or `main(config, workdir)`.

  Args:
    main: What the command does; its errors are shown as by `run_flags`.
    workdir: Whether the command has the flag --workdir.
  """
  define(workdir=workdir)

  def whole() -> None:
    values = given(workdir=workdir)
    said = compiled_programs.keep(flags.FLAGS.programs)
    if said:
      print(said, flush=True)
    main(*values)

  run_flags(whole)


def run_flags(main: Callable[[], object]) -> None:
  """Parses flags that are already defined and calls `main()`.

  Whatever ends the command gives one sentence on standard error and the exit
  code of `failures`; there is no traceback to read unless it is asked for.

  Args:
    main: What the command does.
  """
  working: list[bool] = []

  def guarded(argv: Sequence[str]) -> None:
    del argv
    if not flags.FLAGS["verbosity"].present:
      # Libraries report every step of a checkpoint, which --verbosity=0 shows.
      logging.set_verbosity(logging.WARNING)
    working.append(True)
    main()
    sys.stdout.flush()

  # Neither is put back: what Python prints at its end goes through them, too.
  terminal.guard()
  signals.install()
  logging.get_absl_handler().python_handler.stream = sys.stderr
  try:
    app.run(guarded, flags_parser=parse)
  except (Exception, KeyboardInterrupt) as error:
    # A second signal must not cut the message or the clean-up at the end.
    signals.ignore()
    if flags.FLAGS.is_parsed() and flags.FLAGS.verbosity > 0:
      sys.stderr.write("".join(traceback.format_exception(error)))
    if working and isinstance(error, Exception):
      error = distributed.missing_device() or error
    fail(error)
