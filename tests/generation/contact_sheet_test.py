"""Tests of contact sheets: which frames they show, and that they show them."""

import pathlib

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

from videomla_jax.generation import contact_sheet


@given(st.integers(1, 400), st.integers(1, 40))
def test_sheet_shows_the_first_frames_and_reaches_the_end(
  num_frames: int, columns: int
) -> None:
  chosen = contact_sheet.chosen_frames(num_frames, columns=columns)
  assert len(chosen) == min(columns, num_frames)
  assert chosen[:13] == list(range(min(13, len(chosen))))
  assert chosen == sorted(set(chosen)) and chosen[-1] < num_frames
  if columns > 13:
    assert chosen[-1] == num_frames - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_sheet_holds_the_frames_themselves(channels: int, seed: int) -> None:
  rng = np.random.default_rng(seed)
  videos = rng.integers(0, 256, (3, 20, 24, 24, channels), dtype=np.uint8)
  labels = ["a slow three moving horizontally", "b" * 12, "many words " * 60]
  sheet = contact_sheet.draw(videos, labels, fps=4, columns=16, scale=2)
  picture = np.asarray(sheet)
  chosen = contact_sheet.chosen_frames(20, columns=16)
  first = np.broadcast_to(videos[0, chosen[-1]], (24, 24, 3))
  large = first.repeat(2, axis=0).repeat(2, axis=1)
  assert _contains(picture[:100], large)


def _contains(picture: np.ndarray, part: np.ndarray) -> bool:
  windows = np.lib.stride_tricks.sliding_window_view(picture, part.shape)
  for row in windows[..., 0, :, :, :]:
    if (row == part).all(axis=(1, 2, 3)).any():
      return True
  return False


def test_sheet_needs_one_label_per_video() -> None:
  with pytest.raises(ValueError, match="one for each of the 2 videos"):
    contact_sheet.draw(np.zeros((2, 3, 8, 8, 1), np.uint8), ["a"], fps=4)


def test_png_is_complete_or_absent(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "a.png"
  contact_sheet.write_png(path, Image.new("RGB", (3, 2), "red"))
  assert Image.open(path).getpixel((2, 1)) == (255, 0, 0)
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(0, "0:00.0"), (12.5, "0:12.5"), (59.96, "1:00.0"), (600, "10:00.0")],
)
def test_time_stamps(seconds: float, text: str) -> None:
  assert contact_sheet.time_stamp(seconds) == text


def test_unwritable_folder_is_refused(tmp_path: pathlib.Path) -> None:
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="choose a folder"):
    contact_sheet.write_png(
      tmp_path / "file" / "out" / "a.png", Image.new("L", (1, 1))
    )


def test_a_long_label_does_not_widen_the_sheet(seed: int) -> None:
  rng = np.random.default_rng(seed)
  frames = rng.integers(0, 256, (1, 2, 24, 24, 1), dtype=np.uint8)
  sheets = [
    contact_sheet.draw(frames, [label], fps=4)
    for label in ("a fox", "x" * 5000, "狐狸" * 2500)
  ]
  assert {sheet.width for sheet in sheets[1:]} <= set(range(100, 200))
  assert all(sheet.height < 600 for sheet in sheets)
