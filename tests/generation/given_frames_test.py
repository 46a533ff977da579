"""Tests of films: sheets of large frames, lengths, names."""

import types

import numpy as np
import pytest

from videomla_jax.generation import given_frames
from videomla_jax.generation import mp4


@pytest.mark.parametrize(
  ("width", "shown"), [(24, 48), (48, 48), (240, 240), (832, 208)]
)
def test_pictures_of_a_sheet_have_a_readable_width(
  tmp_path, width: int, shown: int, seed: int
) -> None:
  rng = np.random.default_rng(seed)
  frames = rng.integers(0, 256, (1, 2, 32, width, 3), dtype=np.uint8)
  path = tmp_path / "a.mp4"
  with given_frames.Films([path], fps=16, scale=1, num_frames=2) as made:
    made.append(frames)
  sheet = made.sheet(["a"])
  # Two pictures side by side, a margin around each.
  assert 2 * shown <= sheet.width < 2 * shown + 80
  assert mp4.read_mp4(path)[0].shape == (2, 32, width, 3)


def test_frames_beyond_the_length_are_dropped(tmp_path, seed: int) -> None:
  rng = np.random.default_rng(seed)
  frames = rng.integers(0, 256, (2, 4, 16, 16, 1), dtype=np.uint8)
  paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
  with given_frames.Films(paths, fps=4, scale=1, num_frames=6) as made:
    assert [made.append(frames) for _ in range(3)] == [4, 2, 0]
  assert [len(mp4.read_mp4(p)[0]) for p in paths] == [6, 6]


def test_names_are_readable_unique_and_inside_the_folder() -> None:
  config = types.SimpleNamespace(folder="out", name="x")
  prompts = ["../../etc/passwd", "A cat!", "a cat", "狐" * 9, "long " * 99]
  names = [p.name for p in given_frames.paths(config, prompts)]
  assert names[:4] == [
    "x-0-etc-passwd.mp4",
    "x-1-a-cat.mp4",
    "x-2-a-cat.mp4",
    f"x-3-{'狐' * 9}.mp4",
  ]
  assert all(len(n) < 80 for n in names)
  assert all(
    p.parent.name == "out" for p in given_frames.paths(config, prompts)
  )
