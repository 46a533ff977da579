"""A folder keeps what was made and measured, and refuses other settings."""

import os
import pathlib
from typing import Any

import numpy as np
import pytest

from videomla_jax.generation import mp4
from videomla_jax.quality import folder as folder_lib
from videomla_jax.quality import measures
from videomla_jax.quality import plan
from videomla_jax.quality import prompt_lists

_SETTINGS = dict(seed=0, seconds=5.0, sampler=dict(kind="euler"))


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> folder_lib.Folder:
  made = folder_lib.Folder(tmp_path / "run")
  made.root.mkdir()
  made.claim(_SETTINGS)
  return made


def _videos() -> tuple[plan.Video, ...]:
  prompts = prompt_lists.of_texts(["a cat", "a dog"])
  return plan.videos_of(prompts, samples=2, still_samples=2, seed=0)


def _write(path: pathlib.Path, level: int = 0) -> None:
  mp4.write_mp4(path, np.full((4, 16, 16, 3), level, np.uint8), fps=8)


def _measured(folder: folder_lib.Folder, path: pathlib.Path, **changes: Any):
  arguments = dict(chunks=None, drift_seconds=5.0) | changes
  return folder.measured(path, **arguments)


def test_the_same_settings_are_taken_and_others_refused(
  folder: folder_lib.Folder,
) -> None:
  folder.claim(_SETTINGS)
  before = (folder.root / "settings.json").read_bytes()
  with pytest.raises(ValueError, match=r"seed=0, and 1 is asked; choose"):
    folder.claim(_SETTINGS | dict(seed=1))
  with pytest.raises(ValueError, match=r"sampler={'kind': 'euler'}, and None"):
    folder.claim(dict(seed=0, seconds=5.0))
  assert (folder.root / "settings.json").read_bytes() == before


def test_a_disk_that_does_not_tell_names_apart_is_refused(
  folder: folder_lib.Folder,
) -> None:
  folder.claim(_SETTINGS, needs_case=True)
  # Such a disk finds the file under another name, too.
  (folder.root / "SETTINGS.JSON").touch()
  folder.claim(_SETTINGS)
  with pytest.raises(ValueError, match="does not tell capital letters"):
    folder.claim(_SETTINGS, needs_case=True)


@pytest.mark.parametrize("content", [b"", b"[]", b"{"])
def test_settings_that_cannot_be_read_are_kept(
  folder: folder_lib.Folder, content: bytes
) -> None:
  path = folder.root / "settings.json"
  path.write_bytes(content)
  with pytest.raises(ValueError, match="restore it, or choose another"):
    folder.claim(_SETTINGS)
  assert path.read_bytes() == content


def test_videos_of_unknown_settings_are_refused(tmp_path: pathlib.Path) -> None:
  folder = folder_lib.Folder(tmp_path)
  folder.videos.mkdir()
  (folder.videos / "a-0.mp4").touch()
  with pytest.raises(ValueError, match="nothing says what they were made with"):
    folder.claim(_SETTINGS)


def test_only_what_is_missing_is_asked_for(folder: folder_lib.Folder) -> None:
  videos = _videos()
  assert folder.missing(videos) == [*videos]
  _write(folder.videos / "a cat-1.mp4")
  (folder.videos / ".a cat-0.mp4.tmp").touch()  # of a process that was killed
  assert [x.file for x in folder.missing(videos)] == [
    *("a cat-0.mp4", "a dog-0.mp4", "a dog-1.mp4")
  ]
  _write(folder.videos / "a cow-0.mp4")
  others = [".a cat-0.mp4.tmp", "a cow-0.mp4"]
  assert folder.others(videos) == others
  (folder.videos / "a dog-1.mp4").mkdir()
  with pytest.raises(ValueError, match="is a folder"):
    folder.missing(videos)


def test_two_processes_do_not_make_one_share(folder: folder_lib.Folder) -> None:
  share, other = plan.Share(number=1, count=2), plan.Share(number=2, count=2)
  with folder.held(share):
    with (
      pytest.raises(ValueError, match="another process makes share 1/2"),
      folder.held(share),
    ):
      pass
    with folder.held(other):
      pass
  with folder.held(share):
    pass


def test_numbers_are_kept_as_long_as_they_are_of_the_same_video(
  folder: folder_lib.Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
  read: list[str] = []
  whole = measures.read_series
  monkeypatch.setattr(
    measures,
    "read_series",
    lambda path: (read.append(os.fspath(path)), whole(path))[1],
  )
  path = folder.videos / "a-0.mp4"
  _write(path)
  first = _measured(folder, path)
  assert _measured(folder, path) == first and len(read) == 1
  assert first["measures"]["temporal_flickering"] == 1.0
  # Other bytes, other questions, another version, a damaged file: again.
  _write(path, level=9)
  assert _measured(folder, path)["sha256"] != first["sha256"]
  _measured(folder, path, chunks=measures.Chunks(first=1, following=1))
  _measured(folder, path, drift_seconds=1.0)
  assert len(read) == 4
  monkeypatch.setattr(measures, "FORMAT", measures.FORMAT + 1)
  _measured(folder, path, drift_seconds=1.0)
  assert len(read) == 5
  (kept,) = folder.measures.iterdir()
  kept.write_text("{")
  _measured(folder, path, drift_seconds=1.0)
  assert len(read) == 6


def test_videos_of_a_folder_are_its_files(tmp_path: pathlib.Path) -> None:
  for name in ("b.MP4", "a.webm", ".c.mp4", "d.txt"):
    (tmp_path / name).touch()
  (tmp_path / "deep").mkdir()
  (tmp_path / "deep" / "e.mp4").touch()
  assert [x.name for x in folder_lib.videos_in(tmp_path)] == ["a.webm", "b.MP4"]
  with pytest.raises(ValueError, match="is no folder that can be read"):
    folder_lib.videos_in(tmp_path / "none")


def test_a_pipe_is_no_video(tmp_path: pathlib.Path) -> None:
  os.mkfifo(tmp_path / "a.mp4")
  folder = folder_lib.Folder(tmp_path)
  with pytest.raises(ValueError, match=r"a\.mp4' is no ordinary file"):
    _measured(folder, tmp_path / "a.mp4")
