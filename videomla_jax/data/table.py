"""Reads lists of videos and captions: a folder, a table, or prompts.

Tables have the columns of OpenVid-1M (arXiv:2407.02371): video, caption,
aesthetic score, motion score, temporal consistency score, camera motion, frame,
fps, seconds. Only the first two are needed. With a column `start` a row is a
segment of its video, which begins at second `start` and lasts `seconds`.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import csv
import dataclasses
import itertools
import math
import os
import pathlib
import sys
from typing import Any

import pyarrow
from pyarrow import parquet

type PathLike = str | os.PathLike[str]
type Cell = str | float | int | bool | None
type Row = Mapping[str, Cell]  # by name of the column

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".mpg", ".m4v")
_NUMBERS = (
  "start",
  "aesthetic_score",
  "motion_score",
  "temporal_consistency_score",
  "frame",
  "fps",
  "seconds",
)
_TEXTS = ("video", "caption", "camera_motion")


# A table may have a million rows, as OpenVid-1M has, and an item with slots is
# smaller than one with a dictionary.
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Item:
  """One row: a video, or a segment of one, and its caption.

  Attributes:
    index: Number of the row in the list, from 0; messages count from 1.
    video: Path below the folder of videos; empty for a prompt without video.
    caption: What the video shows; empty if unknown.
    camera_motion: Kind such as "static" or "pan_left"; empty if unknown.
    start: First second of the segment; None is the whole video.
    aesthetic_score: Score that the table lists; None if unknown, like all that
      follow.
    motion_score: Score that the table lists.
    temporal_consistency_score: Score that the table lists.
    frame: Number of frames.
    fps: Frames per second.
    seconds: Length of the segment.
  """

  index: int
  video: str = ""
  caption: str = ""
  camera_motion: str = ""
  start: float | None = None
  aesthetic_score: float | None = None
  motion_score: float | None = None
  temporal_consistency_score: float | None = None
  frame: float | None = None
  fps: float | None = None
  seconds: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A list of items that was read.

  Attributes:
    items: Rows in the order of the source.
    columns: Fields of `Item` that the list has values of.
    source: Path of what was read, for messages.
  """

  items: tuple[Item, ...]
  columns: frozenset[str]
  source: str


def read_folder(folder: PathLike) -> Table:
  """Lists the videos below a folder; `a/b.mp4` has its caption in `a/b.txt`.

  Args:
    folder: Folder of videos.

  Raises:
    ValueError: If there is no such folder or there are no videos in it.
  """
  root = pathlib.Path(folder)
  _require_folder(root)
  paths = sorted(
    path
    for path in root.rglob("*")
    if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")
  )
  if not paths:
    raise ValueError(
      f"videos={str(root)!r} has no videos; put files ending in"
      f" {', '.join(VIDEO_SUFFIXES)} there, each beside a .txt with its"
      " caption, or give a table."
    )
  items = tuple(
    Item(
      index=i,
      video=path.relative_to(root).as_posix(),
      caption=_sidecar(path.with_suffix(".txt")),
    )
    for i, path in enumerate(paths)
  )
  columns = frozenset({"video", "caption"})
  return Table(items=items, columns=columns, source=str(root))


def read_table(path: PathLike, *, videos: PathLike) -> Table:
  """Reads a CSV or Parquet table.

  Args:
    path: File ending in .csv or .parquet; spaces, underscores and case in
      names of columns do not matter.
    videos: Folder that the paths in column `video` start from.

  Raises:
    ValueError: If the file cannot be read or is empty, columns are missing, a
      number is none, a path leads out of the folder, or none of the first
      videos exists.
  """
  path = pathlib.Path(path)
  _require_folder(pathlib.Path(videos))
  readers = {".csv": _read_csv, ".parquet": _read_parquet}
  if path.suffix.lower() not in readers:
    raise ValueError(
      f"table={str(path)!r} is of an unknown kind; give .csv or .parquet."
    )
  try:
    names, rows = readers[path.suffix.lower()](path)
  except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowException) as e:
    raise ValueError(
      f"table={str(path)!r} cannot be read ({e}); give a table in UTF-8."
    ) from e
  columns = _find_columns(path, names)
  items = tuple(_item(path, i, row, columns) for i, row in enumerate(rows))
  if not items:
    raise ValueError(f"table={str(path)!r} has no rows; list some videos.")
  _require_some_video(items, pathlib.Path(videos), path)
  return Table(items=items, columns=frozenset(columns), source=str(path))


def read_prompts(path: PathLike) -> Table:
  """Reads a text file with one prompt per line; empty lines do not count.

  Args:
    path: The file, in UTF-8.

  Raises:
    ValueError: If it cannot be read or has no prompts.
  """
  try:
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(
      f"prompts={str(path)!r} cannot be read ({error}); give a text file in"
      " UTF-8 with one prompt per line."
    ) from error
  prompts = [line.strip() for line in lines if line.strip()]
  if not prompts:
    raise ValueError(f"prompts={str(path)!r} is empty; write one per line.")
  return Table(
    items=tuple(Item(index=i, caption=p) for i, p in enumerate(prompts)),
    columns=frozenset({"caption"}),
    source=str(path),
  )


def _sidecar(path: pathlib.Path) -> str:
  """Returns the caption beside a video, empty if there is none."""
  try:
    return " ".join(path.read_text(encoding="utf-8").split())
  except FileNotFoundError:
    return ""
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(
      f"caption {str(path)!r} cannot be read ({error}); write it in UTF-8."
    ) from error


def _read_csv(path: pathlib.Path) -> tuple[list[str], Iterable[Row]]:
  # Captions may be longer than the 128 kB that the module allows by default.
  # The limit is a C long, which has 32 bits on some systems.
  csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
  # Spreadsheets write a byte order mark, which plain UTF-8 would keep.
  with path.open(encoding="utf-8-sig", newline="") as file:
    reader = csv.DictReader(file)
    rows = list(reader)
    return list(reader.fieldnames or []), rows


def _read_parquet(path: pathlib.Path) -> tuple[list[str], Iterable[Row]]:
  with parquet.ParquetFile(path) as file:
    names = list(file.schema_arrow.names)
    wanted = [n for n in names if _normal(n) in _NUMBERS + _TEXTS]
    return names, file.read(columns=wanted).to_pylist()


def _normal(name: str) -> str:
  return "_".join(name.lower().replace("_", " ").split())


def _find_columns(path: pathlib.Path, names: list[str]) -> dict[str, str]:
  """Returns the column of each field, or refuses the table."""
  columns: dict[str, str] = {}
  for name in names:
    field = _normal(name or "")
    if field in columns:
      raise ValueError(
        f"table={str(path)!r} has the column {field!r} twice; rename one."
      )
    if field in _NUMBERS + _TEXTS:
      columns[field] = name
  missing = [n for n in ("video", "caption") if n not in columns]
  if missing:
    raise ValueError(
      f"table={str(path)!r} lacks the columns {missing} and has {names}; rename"
      " its columns to video and caption."
    )
  return columns


def _item(
  path: pathlib.Path, index: int, row: Row, columns: dict[str, str]
) -> Item:
  """Returns one row as an item."""
  values: dict[str, Any] = {}
  for field, name in columns.items():
    if field in _TEXTS:
      values[field] = str(row[name] or "").strip()
    else:
      values[field] = _number(path, index, name, row[name])
  _require_inside(path, index, values)
  return Item(index=index, **values)


def _require_inside(
  path: pathlib.Path, index: int, values: dict[str, Any]
) -> None:
  """Refuses paths out of the folder: the table may be anybody's."""
  video = pathlib.PurePath(values["video"])
  if video.is_absolute() or ".." in video.parts:
    raise ValueError(
      f"table={str(path)!r} has the video {str(video)!r} in row {index + 1},"
      " which is not below the folder of videos; give paths from there."
    )
  start = values.get("start")
  if start is not None and start < 0:
    raise ValueError(
      f"table={str(path)!r} has start={start} in row {index + 1}; segments"
      " start at second 0 or later."
    )


def _number(
  path: pathlib.Path, index: int, name: str, value: Cell
) -> float | None:
  """Returns a number of the table, None if it is unknown."""
  if value is None or value == "":
    return None
  try:
    number = float(value)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"table={str(path)!r} has {value!r} in row {index + 1} of column"
      f" {name!r}, which holds numbers; correct it or leave it empty."
    ) from error
  # NaN is how tables of numbers say that one is unknown.
  return number if math.isfinite(number) else None


def _require_folder(folder: pathlib.Path) -> None:
  if not folder.is_dir():
    raise ValueError(
      f"videos={str(folder)!r} is no folder; give the folder of the videos."
    )


def _require_some_video(
  items: tuple[Item, ...], folder: pathlib.Path, path: pathlib.Path
) -> None:
  """Refuses a wrong folder, in which none of the first videos exists."""
  first = itertools.islice(items, 100)
  if not any((folder / item.video).is_file() for item in first):
    raise ValueError(
      f"videos={str(folder)!r} has none of the first videos of {str(path)!r},"
      f" such as {items[0].video!r}; give the folder that the paths start from."
    )
