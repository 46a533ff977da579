"""Small JSON files that carry a digest of themselves.

A flipped bit in a number is another number, which no parser can tell from the
right one. So the text is compared, letter by letter, with what its values would
be written as.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

from videomla_jax.storage import atomic
from videomla_jax.storage import ordinary_files

_SEAL = "sha256_of_the_rest"


def write(path: str | os.PathLike[str], values: dict[str, Any]) -> None:
  """Writes a file, complete or not at all.

  Args:
    path: The file.
    values: What it holds.
  """
  atomic.write_text(path, _text(values))


def read(path: pathlib.Path, *, limit: int) -> dict[str, Any]:
  """Returns what a file holds.

  Args:
    path: A file of `write`.
    limit: Most bytes that it may have.

  Raises:
    BadFile: If it cannot be read or is not as it was written.
  """
  content = ordinary_files.read_bytes(path, limit=limit)
  values = ordinary_files.parse_json(content)
  values.pop(_SEAL, None)
  if _text(values).encode() != content:
    raise ordinary_files.BadFile("is not as it was written")
  return values


def _text(values: dict[str, Any]) -> str:
  """Returns the text of values, which begins with a digest of the others."""
  rest = json.dumps(values, sort_keys=True)
  seal = hashlib.sha256(rest.encode()).hexdigest()
  return json.dumps({_SEAL: seal} | json.loads(rest)) + "\n"
