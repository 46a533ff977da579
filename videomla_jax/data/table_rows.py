"""Says what the cells of a table mean, and what a row must fulfil."""

from collections.abc import Mapping
import math
import pathlib
from typing import Any

from videomla_jax.data import prompt_files
from videomla_jax.data import table_files
from videomla_jax.storage import ordinary_files

_NUMBERS = (
  "start",
  "end",
  "aesthetic_score",
  "motion_score",
  "temporal_consistency_score",
  "frame",
  "fps",
  "seconds",
)
_TEXTS = ("video", "caption", "camera_motion")
_NEEDED = ("video", "caption")
_MAX_SECONDS = 1e7  # four months; time stamps of longer videos overflow

type Cells = Mapping[str, table_files.Cell]


def is_header(names: list[str]) -> bool:
  """Says whether names of columns are those of a table of videos.

  Args:
    names: Names in any case, with spaces or underscores.
  """
  return {*_NEEDED} <= {_normal(name) for name in names}


def find_columns(path: pathlib.Path, names: list[str]) -> dict[str, int]:
  """Returns the number of the column of each field.

  Args:
    path: The table, for messages.
    names: Names of its columns.

  Raises:
    ValueError: If a column is missing or there twice.
  """
  columns: dict[str, int] = {}
  for number, name in enumerate(names):
    field = _normal(name)
    if field not in _NUMBERS + _TEXTS:
      continue
    if field in columns:
      raise ValueError(
        f"table={str(path)!r} has the column {field!r} twice; rename one."
      )
    columns[field] = number
  missing = [n for n in _NEEDED if n not in columns]
  if missing:
    shown = [name[:40] for name in names[:20]]
    raise ValueError(
      f"table={str(path)!r} lacks the columns {missing} and has {shown}; rename"
      " its columns to video and caption."
    )
  return columns


def text(cells: Cells, field: str) -> str:
  """Returns a cell as text without white space around it.

  Args:
    cells: Cells of a row by field.
    field: Name of the field.

  Raises:
    BadFile: If it is no text, too long, or not in UTF-8.
  """
  cell = cells[field]
  if cell is None or (isinstance(cell, float) and math.isnan(cell)):
    return ""
  if isinstance(cell, bytes):
    raise ordinary_files.BadFile(f"{field} is no text")
  # Names that are numbers are common.
  if isinstance(cell, (bool, dict, list)) or not isinstance(
    cell, (str, int, float)
  ):
    raise ordinary_files.BadFile(f"{field} is no text")
  value = str(cell).strip()
  if len(value) > prompt_files.MAX_CAPTION:
    raise ordinary_files.BadFile(f"{field} is too long")
  if "\0" in value:
    raise ordinary_files.BadFile(f"{field} has NUL characters")
  try:
    # Most texts need no look at every letter.
    if not value.isascii():
      value.encode()
  except UnicodeEncodeError as error:
    raise ordinary_files.BadFile(f"{field} is not in UTF-8") from error
  return value


def values(cells: Cells) -> dict[str, Any]:
  """Returns the fields of an item, all but its number and its path.

  Args:
    cells: Cells of a row by field.

  Raises:
    BadFile: If one of them cannot be used.
  """
  found: dict[str, Any] = {}
  for field in cells:
    if field in _TEXTS:
      found[field] = text(cells, field)
    else:
      found[field] = _number(field, cells[field])
  _check_segment(found)
  found.pop("end", None)
  return found


def _number(field: str, cell: table_files.Cell) -> float | None:
  """Returns a number of the table, None if it is unknown."""
  if cell is None or cell == "":
    return None
  try:
    number = float(cell)
  except (TypeError, ValueError, OverflowError) as error:
    raise ordinary_files.BadFile(f"{field} is no number") from error
  # NaN is how tables of numbers say that one is unknown.
  return number if math.isfinite(number) else None


def _check_segment(found: dict[str, Any]) -> None:
  """Refuses a segment that has no length; turns its end into a length."""
  start, end = found.get("start"), found.get("end")
  if start is None:
    return
  if not 0 <= start <= _MAX_SECONDS:
    raise ordinary_files.BadFile("start is negative or too large")
  if end is not None:
    if end <= start:
      raise ordinary_files.BadFile("end is not after start")
    found["seconds"] = end - start
  seconds = found.get("seconds")
  if seconds is not None and not 0 < seconds <= _MAX_SECONDS:
    raise ordinary_files.BadFile("seconds of the segment are not positive")


def _normal(name: str) -> str:
  return "_".join(name[:100].lower().replace("_", " ").split())
