"""Tests of lists of videos: folders, tables, prompts, filters and errors."""

import csv

import pyarrow
from pyarrow import parquet
import pytest

from videomla_jax.data import filters as filters_lib
from videomla_jax.data import table as table_lib

# The columns of OpenVid-1M under its own names.
HEADER = [
  "video",
  "caption",
  "aesthetic score",
  "motion score",
  "temporal consistency score",
  "camera motion",
  "frame",
  "fps",
  "seconds",
]
ROWS = [
  ["a.mp4", "a cat, asleep", 5.5, 2.0, 0.99, "static", 100, 25.0, 4.0],
  ["b.mp4", "a dog\nrunning", 4.0, 9.0, 0.95, "pan_left", 240, 24.0, 10.0],
  ["c.mp4", "", 6.0, 3.0, 0.97, "static", 90, 30.0, 3.0],
  ["d.mp4", "a fox", None, 3.0, 0.97, "Undetermined", 90, 30.0, 3.0],
  ["a.mp4", "the cat again", 5.5, 2.0, 0.99, "static", 100, 25.0, 4.0],
]


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "videos").mkdir()
  for name in "abcd":
    (tmp_path / "videos" / f"{name}.mp4").touch()
  return tmp_path


def write_csv(folder, rows, header=HEADER, name="t.csv"):
  with (folder / name).open("w", encoding="utf-8-sig", newline="") as file:
    csv.writer(file).writerows([header, *rows])
  return folder / name


def read(folder, rows, header=HEADER):
  path = write_csv(folder, rows, header)
  return table_lib.read_table(path, videos=folder / "videos")


def test_csv_and_parquet_are_the_same_table(folder):
  columns = dict(zip(HEADER, zip(*ROWS, strict=True), strict=True))
  parquet.write_table(pyarrow.table(columns), folder / "t.parquet")
  one = read(folder, ROWS)
  two = table_lib.read_table(folder / "t.parquet", videos=folder / "videos")
  assert one.items == two.items
  assert one.columns == two.columns
  assert one.items[1].caption == "a dog\nrunning"
  assert one.items[3].aesthetic_score is None
  assert one.excluded == two.excluded == {"duplicate": 1}


def test_a_folder_is_read_with_its_captions(tmp_path):
  for name in ("b/two.mkv", "one.MP4", ".hidden.mp4", "notes.txt"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  (tmp_path / "one.txt").write_text(" a cat\n asleep ")
  items = table_lib.read_folder(tmp_path).items
  assert [(i.video, i.caption) for i in items] == [
    ("b/two.mkv", ""),
    ("one.MP4", "a cat asleep"),
  ]


def test_prompts_are_lines(tmp_path):
  (tmp_path / "p.txt").write_text("a cat\n\n  a dog \n")
  table = table_lib.read_prompts(tmp_path / "p.txt")
  assert [i.caption for i in table.items] == ["a cat", "a dog"]


def test_every_row_is_kept_or_counted(folder):
  filters = filters_lib.Filters(
    min_aesthetic_score=4.5, camera_motion=("static",), max_seconds=5
  )
  kept, excluded = filters_lib.select(read(folder, ROWS), filters)
  assert [i.caption for i in kept] == ["a cat, asleep"]
  assert excluded == {
    "max_seconds": 1,
    "no caption": 1,
    "no aesthetic_score": 1,
    "duplicate": 1,
  }
  assert len(kept) + sum(excluded.values()) == len(ROWS)


def test_segments_of_a_video_are_no_duplicates(folder):
  header = ["Video", "caption", "start", "seconds"]
  table = read(folder, [["a.mp4", "x", 0, 2], ["a.mp4", "x", 2, 2]], header)
  kept, excluded = filters_lib.select(table, filters_lib.Filters())
  assert [i.start for i in kept] == [0.0, 2.0]
  assert not excluded


def test_bounds_are_inclusive():
  filters = filters_lib.Filters(min_fps=24, max_fps=30)
  rules = [filters.failure({"fps": x}) for x in (23.9, 24.0, 30.0, 30.1)]
  assert rules == ["min_fps", None, None, "max_fps"]
  assert filters.failure({"fps": None}) == "no fps"
  assert filters.failure({}) is None


@pytest.mark.parametrize(
  ("rows", "header", "message"),
  [
    ([], HEADER, "has no rows"),
    ([["a.mp4"]], ["video"], r"lacks the columns \['caption'\]"),
    ([["a.mp4", "x", "y"]], ["video", "caption", "Caption"], "twice"),
    (
      [["a.mp4", "x", "fast"]],
      ["video", "caption", "fps"],
      "row 1, 'a.mp4': fps is no number",
    ),
    ([["z.mp4", "x"]], ["video", "caption"], "has none of the videos"),
    ([["../a.mp4", "x"]], ["video", "caption"], "not below the folder"),
    ([["/a.mp4", "x"]], ["video", "caption"], "not below the folder"),
    ([["a.mp4", "x", -1]], ["video", "caption", "start"], "start is negative"),
  ],
)
def test_bad_tables_are_refused(folder, rows, header, message):
  with pytest.raises(ValueError, match=message):
    read(folder, rows, header)


def test_missing_inputs_are_refused(tmp_path):
  with pytest.raises(ValueError, match="is no folder"):
    table_lib.read_folder(tmp_path / "none")
  with pytest.raises(ValueError, match="has no videos"):
    table_lib.read_folder(tmp_path)
  with pytest.raises(ValueError, match="unknown kind"):
    table_lib.read_table(tmp_path / "t.tsv", videos=tmp_path)
  (tmp_path / "t.parquet").write_bytes(b"nothing")
  with pytest.raises(ValueError, match="cannot be read"):
    table_lib.read_table(tmp_path / "t.parquet", videos=tmp_path)
  with pytest.raises(ValueError, match="cannot be read"):
    table_lib.read_prompts(tmp_path / "p.txt")


def test_filters_that_leave_nothing_are_refused(folder):
  with pytest.raises(ValueError, match="must not be negative"):
    filters_lib.Filters(min_fps=-1)
  with pytest.raises(ValueError, match="exceeds its upper bound"):
    filters_lib.Filters(min_fps=30, max_fps=24)
  with pytest.raises(ValueError, match="none is left"):
    filters_lib.select(
      read(folder, ROWS), filters_lib.Filters(min_motion_score=100)
    )
  table = read(folder, [["a.mp4", "x"]], ["video", "caption"])
  with pytest.raises(ValueError, match="lacks the columns"):
    filters_lib.select(table, filters_lib.Filters(min_aesthetic_score=5))
