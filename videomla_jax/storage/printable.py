"""Text from strangers' files, fit to be shown: short, and without controls."""

from collections.abc import Iterable

_MOST = 80  # characters of one text, so that a message stays one line or two


def text(value: object, *, most: int = _MOST) -> str:
  r"""Returns a text that is safe to print, whatever a file has put into it.

  Escape sequences would move the cursor or change the title of a terminal, and
  a zero character would end a line of a log; both are written as `\\x1b`.

  Args:
    value: What to show; of an exception, what it says.
    most: Characters that are shown; of longer texts both ends are.
  """
  try:
    given = str(value)
  except Exception:  # what a library says may be no text either
    given = type(value).__name__
  if len(given) > 4 * most:
    # Megabytes are not walked through for the sake of a line.
    given = given[: 2 * most] + given[-2 * most :]
  shown = "".join(map(_escaped, " ".join(given.split())))
  if len(shown) <= most:
    return shown
  head = (most - 3) * 2 // 3
  return f"{shown[:head]}...{shown[head + 3 - most :]}"


def names(values: Iterable[object], *, most: int = 3) -> str:
  """Returns the first few of many names, and how many more there are.

  Args:
    values: Names, which are shown in their order.
    most: Names that are shown.
  """
  given = list(values)
  shown = ", ".join(text(value, most=60) for value in given[:most])
  more = len(given) - most
  return f"{shown} and {more} more" if more > 0 else shown


def _escaped(letter: str) -> str:
  """Returns a letter, or its escape if it cannot be printed."""
  if letter.isprintable():
    return letter
  return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
