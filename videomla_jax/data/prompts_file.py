"""Files of prompts: text in UTF-8 with one prompt per line."""

import os
import stat

_MAX_BYTES = 64 * 2**20


def read(
  path: str | os.PathLike[str], *, field: str = "prompts_file"
) -> tuple[str, ...]:
  """Returns the prompts of a file; empty lines do not count.

  Nothing in a line separates or escapes anything.

  Args:
    path: The file, in UTF-8 with or without a byte order mark.
    field: What the user calls it.

  Raises:
    ValueError: If it cannot be read, is no such text, is larger than 64 MiB, or
      has no prompts.
  """
  try:
    # A pipe would block without the flag, and a device may never end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
      is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
      content = file.read(_MAX_BYTES + 1) if is_file else b""
  except OSError as error:
    raise _refused(path, field, str(error.strerror)) from error
  if not is_file:
    raise _refused(path, field, "it is no ordinary file")
  if len(content) > _MAX_BYTES:
    raise _refused(path, field, f"it has more than {_MAX_BYTES} bytes")
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise _refused(path, field, "it is not in UTF-8") from error
  if "\0" in text:
    raise _refused(path, field, "it has zero characters")
  # `splitlines` would split at further characters, such as a form feed.
  lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
  prompts = tuple(line.strip() for line in lines if line.strip())
  if not prompts:
    raise _refused(path, field, "it is empty")
  return prompts


def _refused(
  path: str | os.PathLike[str], field: str, reason: str
) -> ValueError:
  return ValueError(
    f"{field}={os.fspath(path)!r} cannot be read ({reason}); give a text file"
    " in UTF-8 with one prompt per line."
  )
