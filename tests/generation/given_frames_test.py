"""Tests of given frames: sizes, colours, and what cannot be read."""

import pathlib

import numpy as np
from PIL import Image
import pytest

from videomla_jax.generation import given_frames
from videomla_jax.generation import mp4

_SIZE = dict(height=16, width=24)


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_becomes_one_frame_of_the_models_size(
  tmp_path: pathlib.Path, channels: int, seed: int
) -> None:
  colour = np.random.default_rng(seed).integers(0, 256, 3, dtype=np.uint8)
  path = tmp_path / "a.png"
  picture = np.broadcast_to(colour, (40, 30, 3))
  Image.fromarray(np.ascontiguousarray(picture)).save(path)
  frames = given_frames.read_given(
    image=str(path), clip="", channels=channels, **_SIZE
  )
  assert frames.shape == (1, 16, 24, channels)
  # Luma of BT.601, as PIL computes it; one colour stays one colour.
  grey = colour.astype(float) @ [0.299, 0.587, 0.114]
  expected = colour if channels == 3 else grey
  assert np.abs(frames.astype(float) - expected).max() <= 1


def test_clip_keeps_its_frames(tmp_path: pathlib.Path) -> None:
  frames = np.full((5, 32, 48, 1), 255, np.uint8)
  frames[:2] = 0
  mp4.write_mp4(tmp_path / "a.mp4", frames, fps=4)
  read = given_frames.read_given(
    image="", clip=str(tmp_path / "a.mp4"), channels=1, **_SIZE
  )
  assert read.shape == (5, 16, 24, 1)
  assert [frame.mean() > 128 for frame in read] == [False] * 2 + [True] * 3


def test_nothing_given_is_none() -> None:
  assert given_frames.read_given(image="", clip="", channels=3, **_SIZE) is None


@pytest.mark.parametrize("kind", ["image", "clip"])
def test_unreadable_file_is_refused(tmp_path: pathlib.Path, kind: str) -> None:
  (tmp_path / "a").write_text("neither picture nor video")
  files = dict(image="", clip="") | {kind: str(tmp_path / "a")}
  with pytest.raises(ValueError, match="cannot be read"):
    given_frames.read_given(channels=3, **files, **_SIZE)
