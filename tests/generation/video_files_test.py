"""Tests of a generation's files: lengths, names, and their sheet."""

import pathlib

import numpy as np
import pytest

from videomla_jax.generation import mp4
from videomla_jax.generation import video_files


@pytest.mark.parametrize(
  ("width", "shown"), [(24, 48), (48, 48), (240, 240), (832, 208)]
)
def test_pictures_of_a_sheet_have_a_readable_width(
  tmp_path, width: int, shown: int, seed: int
) -> None:
  rng = np.random.default_rng(seed)
  frames = rng.integers(0, 256, (1, 2, 32, width, 3), dtype=np.uint8)
  path = tmp_path / "a.mp4"
  with video_files.VideoFiles([path], fps=16, scale=1, num_frames=2) as files:
    files.append(frames)
  sheet = files.sheet(["a"])
  # Two pictures side by side, a margin around each.
  assert 2 * shown <= sheet.width < 2 * shown + 80
  assert mp4.read_mp4(path)[0].shape == (2, 32, width, 3)


def test_frames_beyond_the_length_are_dropped(tmp_path, seed: int) -> None:
  rng = np.random.default_rng(seed)
  frames = rng.integers(0, 256, (2, 4, 16, 16, 1), dtype=np.uint8)
  paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
  with video_files.VideoFiles(paths, fps=4, scale=1, num_frames=6) as files:
    assert [files.append(frames) for _ in range(3)] == [4, 2, 0]
  assert [len(mp4.read_mp4(p)[0]) for p in paths] == [6, 6]


def test_names_are_readable_unique_and_inside_the_folder() -> None:
  prompts = ["../../etc/passwd", "A cat!", "a cat", "狐" * 9, "long " * 99]
  paths = video_files.paths(pathlib.Path("out"), prompts, name="x")
  assert [p.name for p in paths[:4]] == [
    "x-0-etc-passwd.mp4",
    "x-1-a-cat.mp4",
    "x-2-a-cat.mp4",
    f"x-3-{'狐' * 9}.mp4",
  ]
  assert all(len(p.name) < 80 for p in paths)
  assert all(len(p.name.encode()) <= 255 for p in paths)
  assert all(p.parent == pathlib.Path("out") for p in paths)


@pytest.mark.parametrize("letter", ["x", "é", "狐", "🦊狐"])
def test_names_are_cut_at_whole_letters_within_255_bytes(letter: str) -> None:
  prompt, name = letter * 200, "n" * 120
  for seeds in (None, [0], [7]):
    (path,) = video_files.paths(
      pathlib.Path(), [prompt], name=name, seeds=seeds
    )
    assert 150 < len(path.name.encode()) <= 255
    path.name.encode().decode()


def test_seeds_are_named_unless_the_first_is_zero() -> None:
  def names(seeds):
    paths = video_files.paths(pathlib.Path(), ["a", "b"], name="x", seeds=seeds)
    return [p.name for p in paths]

  assert names([0, 1]) == names(None) == ["x-0-a.mp4", "x-1-b.mp4"]
  assert names([8, 9]) == ["x-0-a-seed8.mp4", "x-1-b-seed9.mp4"]


def test_an_interrupt_keeps_frames_and_an_error_does_not(
  tmp_path, seed: int
) -> None:
  rng = np.random.default_rng(seed)
  frames = rng.integers(0, 256, (1, 3, 16, 16, 1), dtype=np.uint8)
  for error, kept in ((KeyboardInterrupt(), True), (OSError(), False)):
    path = tmp_path / f"{kept}.mp4"
    with pytest.raises(type(error)):
      with video_files.VideoFiles(
        [path], fps=4, scale=1, num_frames=6
      ) as files:
        files.append(frames)
        raise error
    assert path.exists() == kept
  assert len(mp4.read_mp4(tmp_path / "True.mp4")[0]) == 3
  assert len(list(tmp_path.iterdir())) == 1
