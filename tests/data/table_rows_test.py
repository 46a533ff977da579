"""Tests of the rows of tables from elsewhere: used, counted or set aside."""

import os
import resource

import pyarrow
from pyarrow import parquet
import pytest

from videomla_jax.data import filters as filters_lib
from videomla_jax.data import table as table_lib
from videomla_jax.data import table_files


@pytest.fixture
def folder(tmp_path):
  for name in ("a.mp4", "b.mkv", "part0/video/c.mp4", "x/d.mp4", "y/d.mp4"):
    path = tmp_path / "videos" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  (tmp_path / "secret.mp4").touch()
  return tmp_path


def read(folder, text, name="t.csv"):
  data = text if isinstance(text, bytes) else text.encode()
  (folder / name).write_bytes(data)
  return table_lib.read_table(folder / name, videos=folder / "videos")


def reasons(table):
  return [(about.video, about.reason) for about in table.set_aside]


def test_a_part_of_a_data_set_is_what_is_there(folder):
  (folder / "videos" / "OpenVid_part1.zip").touch()
  text = "video,caption\na.mp4,x\n" + "".join(f"{i}.mp4,y\n" for i in range(54))
  table = read(folder, text)
  assert [item.video for item in table.items] == ["a.mp4"]
  assert table.excluded == {"no such file": 54}
  (note,) = table.notes
  assert "54 of 55 rows are left out" in note
  assert "1 archives, such as 'OpenVid_part1.zip'; unpack them" in note
  kept, excluded = filters_lib.select(table, filters_lib.Filters())
  assert len(kept) == 1 and excluded == {"no such file": 54}


def test_videos_are_found_without_ending_and_in_subfolders(folder):
  names = ["a", "b", "c.mp4", "video/c", "./a.mp4", "d.mp4", "x/d"]
  names.append(f"{folder}/videos/a.mp4")
  rows = "".join(f"{name},text,{i}\n" for i, name in enumerate(names))
  table = read(folder, "video,caption,start\n" + rows)
  c = "part0/video/c.mp4"
  assert [item.video for item in table.items] == [
    *("a.mp4", "b.mkv", c, c, "a.mp4", "x/d.mp4", "a.mp4")
  ]
  assert reasons(table) == [
    ("d.mp4", "video is there more than once in subfolders")
  ]


@pytest.mark.parametrize(
  "name",
  [
    *("../secret.mp4", "x/../../secret.mp4", "/etc/passwd", "~/secret.mp4"),
    *("http://127.0.0.1/a.mp4", "file:///etc/passwd", "a.mp4\0", "nul\0"),
    *("concat:a.mp4", "pipe", "zero", "gone", "..", "/", ".", "part0"),
  ],
)
def test_nothing_outside_the_folder_is_ever_named(folder, name):
  videos = folder / "videos"
  os.mkfifo(videos / "pipe.mp4")
  (videos / "zero.mp4").symlink_to("/dev/zero")
  (videos / "gone.mp4").symlink_to("nowhere.mp4")
  table = read(folder, f"video,caption\n{name},x\nb.mkv,y\n")
  assert [item.video for item in table.items] == ["b.mkv"]
  assert len(table.set_aside) + table.excluded.get("no such file", 0) == 1


def test_links_lead_to_videos_as_before(folder):
  (folder / "videos" / "link.mp4").symlink_to(folder / "secret.mp4")
  (folder / "elsewhere").mkdir()
  (folder / "elsewhere" / "e.mp4").touch()
  (folder / "videos" / "far").symlink_to(folder / "elsewhere")
  table = read(folder, "video,caption\nlink.mp4,x\nfar/e.mp4,y\nfar/no,z\n")
  assert [item.video for item in table.items] == ["link.mp4", "far/e.mp4"]


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    ("a,x,-1,,", "start is negative or too large"),
    ("a,x,1e300,,", "start is negative or too large"),
    ("a,x,5,3,", "end is not after start"),
    ("a,x,5,,0", "seconds of the segment are not positive"),
    ("a,x,early,,", "start is no number"),
    ("a,x,1,2,3,and more", "has more cells than the header"),
    ("a,nul\0,1,,", "caption has NUL characters"),
    ("a,caf\udce9,1,,", "caption is not in UTF-8"),
  ],
)
def test_a_bad_row_concerns_that_row(folder, row, reason):
  text = f"video,caption,start,end,seconds\n{row}\nb,y,0,1.5,9\n"
  table = read(folder, text.encode("utf-8", "surrogateescape"))
  assert [about.reason for about in table.set_aside] == [reason]
  (good,) = table.items
  assert (good.video, good.start, good.seconds) == ("b.mkv", 0.0, 1.5)
  with pytest.raises(ValueError, match=f"no row that can be used.*{reason}"):
    read(
      folder, text.encode("utf-8", "surrogateescape").replace(b"\nb,", b"\n.")
    )


def test_numbers_that_are_none_are_unknown(folder):
  table = read(folder, "video,caption,start,fps\na,x,nan,inf\nb,y,,-inf\n")
  assert [(i.start, i.fps) for i in table.items] == [(None, None)] * 2
  assert not table.set_aside


def test_other_separators_and_texts_of_any_kind_are_read(folder):
  for mark in ",;\t|":
    text = mark.join(("Video", "CAPTION", "fps")) + "\n"
    text += mark.join(("a", '"salt; pepper &amp; ""cats"", |\t more"', "24"))
    (item,) = read(folder, "\ufeff" + text).items
    assert item.caption == 'salt; pepper &amp; "cats", |\t more'
    assert item.fps == 24.0


@pytest.mark.parametrize(
  ("data", "message"),
  [
    ("video,caption\na,x\n".encode("utf-16"), "it is in UTF-16"),
    (b'video,caption\na,"x\nb,y\n', "a quote in line 2 that is never closed"),
    (b"," * 20_000, "more than 10000 columns"),
    (b"x" * 17 * 2**20, "a line of"),
    (b"", "it is empty"),
    (b"video,caption\n,\n,\n", "names no video"),
    (b"video,caption\nq,x\n", "has none of the videos"),
    (b"\xff\xfe", "it is in UTF-16"),
  ],
)
def test_a_bad_table_is_one_sentence(folder, data, message):
  with pytest.raises(ValueError, match=message) as error:
    read(folder, data)
  assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_pipes_and_devices_are_no_tables(folder):
  os.mkfifo(folder / "t.csv")
  (folder / "t.parquet").symlink_to("/dev/zero")
  for name in ("t.csv", "t.parquet"):
    with pytest.raises(ValueError, match="no ordinary file"):
      table_lib.read_table(folder / name, videos=folder / "videos")


def test_a_text_that_all_rows_share_does_not_fill_the_memory(folder):
  # The file stores it once, and says nothing of what the rows are together.
  index = pyarrow.array([0] * 2000, pyarrow.int32())
  columns = {
    name: pyarrow.DictionaryArray.from_arrays(index, pyarrow.array([text]))
    for name, text in (("video", "a.mp4"), ("caption", "x" * 900_000))
  }
  parquet.write_table(
    pyarrow.table(columns),
    folder / "t.parquet",
    dictionary_pagesize_limit=2**24,
  )
  assert (folder / "t.parquet").stat().st_size < 100_000
  with pytest.raises(ValueError, match=r"t\.parquet.* it unpacks from"):
    table_lib.read_table(folder / "t.parquet", videos=folder / "videos")


def test_parquet_of_any_types_is_read_or_set_aside(folder):
  made = pyarrow.table(
    {
      "video": pyarrow.array(["a", "b", "c", None]),
      "caption": pyarrow.array([b"x", b"\xff", b"z", b"w"]).view(
        pyarrow.string()
      ),
      "fps": pyarrow.array([[1], [2], None, None]),
      "start": pyarrow.array([1, 2, 3, 4]),
    }
  )
  parquet.write_table(made, folder / "t.parquet")
  table = table_lib.read_table(folder / "t.parquet", videos=folder / "videos")
  assert [item.caption for item in table.items] == ["z"]
  assert reasons(table) == [
    ("a", "fps is no number"),
    ("b", "caption is not in UTF-8"),
  ]
  assert table.excluded == {"no such file": 1}


def test_rows_that_repeat_or_are_empty_cost_no_memory(folder):
  text = "video,caption\n" + "a,x\n" * 5_000 + ",\n" * 100_000
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  table = read(folder, text)
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert table.excluded == {"duplicate": 4_999, "no such file": 100_000}
  assert grown < 10_000  # kB


def test_a_small_file_may_not_unpack_to_gigabytes(folder, monkeypatch):
  monkeypatch.setattr(table_files, "_FREE_BYTES", 10**6)
  words = pyarrow.array(["x" * 3_000_000])
  made = pyarrow.table({"video": ["a"], "caption": words})
  parquet.write_table(made, folder / "t.parquet", compression="zstd")
  assert (folder / "t.parquet").stat().st_size < 10_000
  with pytest.raises(ValueError, match="unpacks from"):
    table_lib.read_table(folder / "t.parquet", videos=folder / "videos")


def test_captions_of_a_folder_are_set_aside_one_by_one(tmp_path):
  bad = {
    "latin": "café".encode("latin-1"),
    "wide": "a cat".encode("utf-16"),
    "nul": b"a\0cat",
    "large": b"a " * 2**20,
  }
  good = {"marked": b"\xef\xbb\xbfa  cat\r\n", "blank": b" \n", "plain": b"x;y"}
  for name, data in (bad | good).items():
    (tmp_path / f"{name}.mp4").touch()
    (tmp_path / f"{name}.txt").write_bytes(data)
  for name in ("folder", "pipe", "circle", "broken", "none"):
    (tmp_path / f"{name}.mp4").touch()
  (tmp_path / "folder.txt").mkdir()
  os.mkfifo(tmp_path / "pipe.txt")
  (tmp_path / "circle.txt").symlink_to("circle.txt")
  (tmp_path / "broken.txt").symlink_to("nowhere")
  os.mkfifo(tmp_path / "waits.mp4")
  with open(os.fsencode(tmp_path) + b"/\xe9.mp4", "wb"):
    pass
  table = table_lib.read_folder(tmp_path)
  assert {i.video: i.caption for i in table.items} == {
    "blank.mp4": "",
    "marked.mp4": "a cat",
    "none.mp4": "",
    "plain.mp4": "x;y",
  }
  found = dict(reasons(table))
  assert found.pop("\ufffd.mp4") == "name is not in UTF-8"
  assert found == {
    "broken.mp4": "caption cannot be opened (No such file or directory)",
    "circle.mp4": "caption cannot be opened (Too many levels of symbolic links)",
    "folder.mp4": "caption is no ordinary file",
    "large.mp4": "caption has more than 32768 bytes",
    "latin.mp4": "caption is not in UTF-8",
    "nul.mp4": "caption is no text, for it has NUL characters",
    "pipe.mp4": "caption is no ordinary file",
    "waits.mp4": "is no ordinary file",
    "wide.mp4": "caption is in UTF-16 and not in UTF-8",
  }
  numbers = [x.index for x in (*table.items, *table.set_aside)]
  assert sorted(numbers) == [*range(len(numbers))]
