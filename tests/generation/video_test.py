"""Tests of finished videos: files, sizes on the screen, notebooks."""

import pathlib

import numpy as np
import pytest

import videomla_jax
from videomla_jax.generation import mp4


def test_notebook_shows_every_video(seed: int) -> None:
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (2, 3, 16, 16, 1), dtype=np.uint8)
  video = videomla_jax.Video(pixels=pixels, fps=4, prompts=("a <b>", "c"))
  page = video._repr_html_()
  assert page.count("<video") == 2 and "a &lt;b&gt;" in page
  assert repr(video).endswith("2 x 3 x 16 x 16 x 1, 4 frames per second)")


@pytest.mark.parametrize(
  ("size", "scale", "shown"),
  [
    ((24, 32), 0, (288, 384)),
    ((480, 832), 0, (480, 832)),
    ((24, 32), 2, (48, 64)),
  ],
)
def test_small_videos_are_saved_large_enough_to_look_at(
  tmp_path: pathlib.Path,
  size: tuple[int, int],
  scale: int,
  shown: tuple[int, int],
) -> None:
  pixels = np.zeros((2, 3, *size, 1), np.uint8)
  pixels[1] = 255
  video = videomla_jax.Video(pixels=pixels, fps=4, prompts=("a cat", "a dog"))
  paths = videomla_jax.save(video, tmp_path / "new", name="x", scale=scale)
  assert [pathlib.Path(p).name for p in paths] == [
    "x-0-a-cat.mp4",
    "x-1-a-dog.mp4",
  ]
  for i, path in enumerate(paths):
    frames, fps = mp4.read_mp4(path)
    assert (frames.shape, fps) == ((3, *shown, 3), 4.0)
    assert (frames.mean() > 128) == bool(i)


def test_mistakes_leave_no_file(tmp_path: pathlib.Path) -> None:
  pixels = np.zeros((1, 2, 8, 8, 1), np.uint8)
  video = videomla_jax.Video(pixels=pixels, fps=4, prompts=("a cat",))
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="choose a folder"):
    videomla_jax.save(video, tmp_path / "file" / "out")
  with pytest.raises(ValueError, match="scale=-1 must be at least 1"):
    videomla_jax.save(video, tmp_path / "out", scale=-1)
  with pytest.raises(ValueError, match="must be a name without folders"):
    videomla_jax.save(video, tmp_path / "out", name="../x")
  assert not [*(tmp_path / "out").iterdir()]
