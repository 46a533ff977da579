"""Files that are whole or not there: written aside, then renamed."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import uuid


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Gives a temporary path and renames it to `path` when the block ends well.

  The name is unique, so that two processes may write the same file: the last
  one wins, and a reader never sees a part. After an exception nothing is left.

  Args:
    path: The file to replace; its folder exists.

  Yields:
    Where to write.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a UTF-8 text file."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")
