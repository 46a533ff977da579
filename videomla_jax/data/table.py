"""Reads lists of videos and captions: a folder, a table, or prompts.

Tables have the columns of OpenVid-1M (arXiv:2407.02371): video, caption,
aesthetic score, motion score, temporal consistency score, camera motion, frame,
fps, seconds. Only the first two are needed. With a column `start` a row is a
segment of its video, which begins at second `start` and lasts `seconds`, or
ends at second `end`.

What is wrong with one row concerns that row: it is set aside with the reason. A
row whose video is not there is counted alone, since most people have a part of
a data set.
"""

import collections
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
import pathlib

from videomla_jax.data import prompt_files
from videomla_jax.data import table_files
from videomla_jax.data import table_rows
from videomla_jax.data import video_folder
from videomla_jax.storage import ordinary_files

type PathLike = str | os.PathLike[str]

NO_FILE = "no such file"
DUPLICATE = "duplicate"


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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SetAside:
  """An input that cannot be used.

  Attributes:
    index: Number of the row in the list, from 0.
    video: What the list calls it.
    reason: What is wrong, in a few words that many inputs may share.
  """

  index: int
  video: str
  reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A list of items that was read.

  Attributes:
    items: Rows in the order of the source.
    columns: Fields of `Item` that the list has values of.
    source: Path of what was read, for messages.
    excluded: Number of rows that are counted alone, by rule.
    set_aside: Rows that cannot be used.
    notes: Sentences about the list for the user.
  """

  items: tuple[Item, ...]
  columns: frozenset[str]
  source: str
  excluded: Mapping[str, int] = dataclasses.field(default_factory=dict)
  set_aside: tuple[SetAside, ...] = ()
  notes: tuple[str, ...] = ()


def read_folder(folder: PathLike) -> Table:
  """Lists the videos below a folder; `a/b.mp4` has its caption in `a/b.txt`.

  A video whose name or caption cannot be read is set aside.

  Args:
    folder: Folder of videos.

  Raises:
    ValueError: If there is no such folder or there are no videos in it.
  """
  found = video_folder.VideoFolder(folder)
  unusable = {
    path: reason
    for path, reason in found.unusable.items()
    if video_folder.is_video(path) or video_folder.is_folder_reason(reason)
  }
  paths = sorted([*found.videos(), *unusable], key=lambda path: path.split("/"))
  if not paths:
    raise ValueError(
      f"videos={str(folder)!r} has no videos; put files ending in"
      f" {', '.join(video_folder.SUFFIXES)} there, each beside a .txt with its"
      f" caption, or give a table.{_archives(found)}"
    )
  items, set_aside = [], []
  for index, path in enumerate(paths):
    try:
      if path in unusable:
        raise ordinary_files.BadFile(unusable[path])
      items.append(Item(index=index, video=path, caption=_beside(found, path)))
    except ordinary_files.BadFile as error:
      about = SetAside(index=index, video=path, reason=str(error))
      set_aside.append(about)
  return Table(
    items=tuple(items),
    columns=frozenset({"video", "caption"}),
    source=str(folder),
    set_aside=tuple(set_aside),
  )


def read_table(path: PathLike, *, videos: PathLike) -> Table:
  """Reads a CSV or Parquet table.

  Args:
    path: File ending in .csv or .parquet; spaces, underscores and case in
      names of columns do not matter.
    videos: Folder that the paths in column `video` start from, see
      `video_folder.VideoFolder.find`.

  Raises:
    ValueError: If the file cannot be read or is empty, columns are missing,
      none of the videos exists, or no row can be used.
  """
  path = pathlib.Path(path)
  if path.suffix.lower() not in (".csv", ".parquet"):
    raise ValueError(
      f"table={str(path)!r} is of an unknown kind; give .csv or .parquet."
    )
  folder = video_folder.VideoFolder(videos)
  try:
    file = table_files.open_table(path, is_header=table_rows.is_header)
    try:
      columns = table_rows.find_columns(path, file.names)
      found = _Rows(folder, [*columns])
      for index, row in enumerate(file.rows([*columns.values()])):
        found.add(index, row)
    finally:
      file.close()
  except ordinary_files.BadFile as error:
    raise ValueError(
      f"table={str(path)!r} cannot be read: it {error}; give a table in UTF-8"
      " with the columns video and caption."
    ) from error
  found.check(path)
  return Table(
    items=tuple(found.items),
    columns=frozenset(columns) & {f.name for f in dataclasses.fields(Item)},
    source=str(path),
    excluded=dict(found.excluded),
    set_aside=tuple(found.set_aside),
    notes=found.notes(path),
  )


def read_prompts(path: PathLike) -> Table:
  """Reads a text file with one prompt per line; empty lines do not count.

  Args:
    path: The file, in UTF-8.

  Raises:
    ValueError: If it cannot be read or has no prompts.
  """
  prompts = prompt_files.read_prompts(path, field="prompts")
  return Table(
    items=tuple(Item(index=i, caption=p) for i, p in enumerate(prompts)),
    columns=frozenset({"caption"}),
    source=str(path),
  )


class _Rows:
  """Collects the rows of a table: to use, to count, and to set aside."""

  def __init__(
    self, folder: video_folder.VideoFolder, fields: Sequence[str]
  ) -> None:
    self.items: list[Item] = []
    self.excluded = collections.Counter[str]()
    self.set_aside: list[SetAside] = []
    self._folder = folder
    self._fields = fields
    self._video = fields.index("video")
    self._absent = ""  # a video that is not there
    self._known: set[tuple[str, float | None]] = set()

  def add(self, index: int, row: table_files.Row) -> None:
    """Takes one row.

    Args:
      index: Its number, from 0.
      row: Its cells, in the order of the fields, or the reason why not.
    """
    named = ""
    # Millions of empty lines cost a second, and not a minute.
    if not isinstance(row, str) and row[self._video] in ("", None):
      self.excluded[NO_FILE] += 1
      return
    try:
      if isinstance(row, str):
        raise ordinary_files.BadFile(row)
      cells = dict(zip(self._fields, row, strict=True))
      named = table_rows.text(cells, "video")
      video = self._folder.find(named) if named else None
      if video is None:
        self.excluded[NO_FILE] += 1
        self._absent = self._absent or named[:80]
        return
      values = table_rows.values(cells)
      key = (video, values.get("start"))
      # Of a table that repeats one row for ever, one row is kept.
      if key in self._known:
        self.excluded[DUPLICATE] += 1
        return
      self._known.add(key)
      self.items.append(Item(index=index, **values | {"video": video}))
    except ordinary_files.BadFile as error:
      about = SetAside(index=index, video=named[:300], reason=str(error))
      self.set_aside.append(about)

  def check(self, path: pathlib.Path) -> None:
    """Refuses a table of which nothing is left.

    Args:
      path: The table.

    Raises:
      ValueError: If so.
    """
    if self.items:
      return
    if self.set_aside:
      first = self.set_aside[0]
      raise ValueError(
        f"table={str(path)!r} has no row that can be used, such as row"
        f" {first.index + 1}, {first.video!r}: {first.reason}; correct it."
      )
    if self.excluded[NO_FILE] and not self._absent:
      raise ValueError(
        f"table={str(path)!r} names no video in any row; fill its column video."
      )
    if self.excluded[NO_FILE]:
      raise ValueError(
        f"videos={str(self._folder.root)!r} has none of the videos of"
        f" {str(path)!r}, such as {self._absent!r}; give the folder that the"
        f" paths start from.{_archives(self._folder)}"
      )
    raise ValueError(f"table={str(path)!r} has no rows; list some videos.")

  def notes(self, path: pathlib.Path) -> tuple[str, ...]:
    """Returns what the user should know about the table.

    Args:
      path: The table.
    """
    absent = self.excluded[NO_FILE]
    if not absent or not self._absent:
      return ()
    total = len(self.items) + self.excluded.total() + len(self.set_aside)
    return (
      f"{path}: {absent} of {total} rows are left out, for their videos, such"
      f" as {self._absent!r}, are not in"
      f" {str(self._folder.root)!r}.{_archives(self._folder)}",
    )


def _beside(folder: video_folder.VideoFolder, path: str) -> str:
  """Returns the caption beside a video, empty if there is none."""
  caption = (folder.root / path).with_suffix(".txt")
  try:
    return prompt_files.read_caption(caption)
  except ordinary_files.BadFile as error:
    raise ordinary_files.BadFile(f"caption {error}") from error


def _archives(folder: video_folder.VideoFolder) -> str:
  """Says that archives lie in a folder that should be unpacked."""
  if not folder.archives:
    return ""
  return (
    f" It has {len(folder.archives)} archives, such as"
    f" {min(folder.archives)!r}; unpack them."
  )
