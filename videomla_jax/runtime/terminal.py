"""What reaches a terminal or a log: printable text of bounded length."""

import contextlib
import io
import os
import sys
from typing import Any

_LONGEST = 600  # characters of a sentence that a person still reads
_HEAD = 400  # of them at its beginning; the way out stands at the end
_KEPT = "\n\r\t"


def printable(text: str) -> str:
  """Returns text in which control characters are written as escapes.

  Names of files and prompts may hold anything, such as sequences that change
  what a terminal shows.

  Args:
    text: Any text.
  """
  if text.isprintable():
    return text
  return "".join(
    x
    if x.isprintable() or x in _KEPT
    else x.encode("unicode_escape").decode("ascii")
    for x in text
  )


def sentence(text: str) -> str:
  """Returns text as one line that is printable and not too long.

  Args:
    text: Any text; what stands in the middle of a long one is left out.
  """
  line = printable(" ".join(text.split()))
  if len(line) <= _LONGEST:
    return line
  tail = _LONGEST - _HEAD - len(" [...] ")
  return f"{line[:_HEAD]} [...] {line[-tail:]}"


class Output(io.TextIOBase):
  """Standard output or standard error behind `printable`.

  A reader that goes away, such as `head`, does not end a long computation: what
  would be printed after that is dropped.
  """

  def __init__(self, stream: Any) -> None:
    """Wraps a stream.

    Args:
      stream: An open text file.
    """
    self.raw = stream
    with contextlib.suppress(AttributeError, ValueError):
      # A terminal of another encoding shows escapes in place of letters.
      stream.reconfigure(errors="backslashreplace")

  def write(self, text: str) -> int:
    """Writes text; control characters become escapes.

    Args:
      text: Any text.

    Raises:
      OSError: If it cannot be written, as to a file on a full disk.
    """
    try:
      self.raw.write(printable(text))
    except OSError as error:
      self._lost(error)
    return len(text)

  def flush(self) -> None:
    """Writes what is buffered; raises as `write` does."""
    try:
      self.raw.flush()
    except OSError as error:
      self._lost(error)

  def isatty(self) -> bool:
    """Says whether a person looks at it."""
    return self.raw.isatty()

  def fileno(self) -> int:
    """Returns the number of the file."""
    return self.raw.fileno()

  @property
  def encoding(self) -> str:  # type: ignore[override]
    """Encoding of the stream."""
    return self.raw.encoding

  @property
  def buffer(self) -> io.BufferedIOBase:
    """The bytes below; nothing is escaped there."""
    return self.raw.buffer

  def _lost(self, error: OSError) -> None:
    """Sends what is still to come to nowhere, and tells unless a pipe broke."""
    # What is buffered would fail once more at the end of the process.
    with open(os.devnull, "wb") as nowhere:
      os.dup2(nowhere.fileno(), self.raw.fileno())
    if not isinstance(error, BrokenPipeError):
      name = getattr(self.raw, "name", "standard output")
      raise OSError(error.errno, error.strerror, name) from error


def guard() -> None:
  """Puts `Output` in front of standard output and standard error, for good.

  Either may be closed, as a service manager starts programs; it is replaced by
  one that writes nowhere.
  """
  sys.stdout, sys.stderr = (
    x if isinstance(x, Output) else Output(x or open(os.devnull, "w"))  # noqa: SIM115
    for x in (sys.stdout, sys.stderr)
  )


def raw(stream: Any) -> Any:
  """Returns the stream behind `Output`, for bars that move the cursor.

  Args:
    stream: Any text stream.
  """
  return stream.raw if isinstance(stream, Output) else stream
