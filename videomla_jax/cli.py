"""How every entry point starts, and how it says that the user erred."""

from collections.abc import Callable
from collections.abc import Sequence
import sys

from absl import app
from absl import flags

# Mistakes of the user; anything else is ours and keeps its traceback.
USER_ERRORS = (ValueError, NotImplementedError)


def fail(error: BaseException) -> None:
  """Prints one line and ends the process with code 2."""
  message = " ".join(str(error).strip("'\"").split())
  print(f"error: {message}", file=sys.stderr)
  sys.exit(2)


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  # A config file is Python and may raise anything; flags raise many kinds.
  except (flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
    fail(error)
  except USER_ERRORS as error:
    fail(error)
  return []


def run(main: Callable[[], None]) -> None:
  """Parses flags and runs an entry point.

  Bad flags, bad config fields and `ValueError`s give one sentence on standard
  error and exit code 2; there is no traceback to read.
  """

  def guarded(argv: Sequence[str]) -> None:
    if len(argv) > 1:
      fail(ValueError(f"unexpected argument {argv[1]!r}; use --name=value."))
    try:
      main()
    except USER_ERRORS as error:
      fail(error)

  app.run(guarded, flags_parser=_parse)
