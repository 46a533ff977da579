"""Files that are complete or absent: written aside, then renamed."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import uuid


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Gives a temporary path and renames it to `path` when the block ends well.

  The temporary name is unique, so that two processes may write the same file:
  the last one wins, and a reader never sees half of it. After an exception
  nothing is left.

  Args:
    path: The file to replace; its folder exists.

  Yields:
    The path to write to.
  """
  path = pathlib.Path(path)
  # It lies beside the target, since one rename cannot cross file systems.
  temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    # After a rename that went well nothing has this name any more.
    temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a text file in UTF-8, which is complete or absent.

  Args:
    path: The file to replace; its folder exists.
    text: What to write.
  """
  with replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")
