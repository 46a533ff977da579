"""Tests of given frames: which are kept, what is said, what is refused."""

import pathlib

import numpy as np
from PIL import Image
import pytest

from tests.media import films
from videomla_jax.generation import given_frames
from videomla_jax.media import clips
from videomla_jax.media import fitting
from videomla_jax.models import window as window_lib


def _read(channels: int = 3, **changes) -> given_frames.Given | None:
  values = dict(image="", clip="", fps=16, most=100) | changes
  shape = fitting.FrameShape(height=16, width=24, channels=channels)
  return given_frames.read_given(shape=shape, **values)


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_becomes_one_frame_of_the_models_size(
  tmp_path: pathlib.Path, channels: int, seed: int
) -> None:
  colour = np.random.default_rng(seed).integers(0, 256, 3, dtype=np.uint8)
  path = tmp_path / "a.png"
  picture = np.broadcast_to(colour, (40, 30, 3))
  Image.fromarray(np.ascontiguousarray(picture)).save(path)
  given = _read(channels, image=str(path))
  assert given.frames.shape == (1, 16, 24, channels)
  # Luma of BT.601, as PIL computes it; one colour stays one colour.
  grey = colour.astype(float) @ [0.299, 0.587, 0.114]
  expected = colour if channels == 3 else grey
  assert np.abs(given.frames.astype(float) - expected).max() <= 1
  assert all(text.startswith("image 'a.png': ") for text in given.changes)
  assert "cut to the middle 30 x 20 of 30 x 40 pixels" in given.changes[0]


@pytest.mark.parametrize("path_like", [str, pathlib.Path])
def test_what_prepare_stores_is_what_sample_continues(
  tmp_path: pathlib.Path, path_like: type
) -> None:
  path = films.write(tmp_path / "a.mp4", films.numbered(60), rate=30)
  films.show_by(path, films.MATRICES["left"])
  given = _read(clip=path_like(path))
  shape = clips.ClipShape(height=16, width=24, num_frames=8, fps=16.0)
  with clips.open_video(path) as video:
    stored = np.concatenate([*video.clips(shape, max_clips=9)])
  np.testing.assert_array_equal(given.frames, stored)
  start = given_frames.read_start(path, shape=shape.frame, fps=16.0, most=8)
  np.testing.assert_array_equal(start.frames, stored[:8])
  assert start.changes == given.changes
  assert any("turned 90 degrees to the left" in x for x in given.changes)


def test_a_clip_keeps_its_newest_frames(tmp_path: pathlib.Path) -> None:
  path = films.write(tmp_path / "a.mp4", films.numbered(40))
  assert films.numbers(_read(clip=path, most=7).frames) == [*range(33, 40)]


def test_more_than_memory_holds_is_left_out_and_told(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(given_frames, "_MOST_BYTES", 6 * 16 * 24 * 3)
  path = films.write(tmp_path / "a.mp4", films.numbered(40))
  given = _read(clip=path, most=None)
  assert films.numbers(given.frames) == [*range(34, 40)]
  assert "only the last 6 of 40 frames" in given.changes[-1]


def test_a_chunk_sees_the_sink_and_the_history() -> None:
  window = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=6)
  assert given_frames.visible_frames(window, stride=4) == 1 + 3 * 4
  alone = window_lib.Window(chunk_frames=3, sink_frames=0, local_frames=3)
  assert given_frames.visible_frames(alone, stride=4) == 1
  everything = window_lib.Window(
    chunk_frames=3, sink_frames=0, local_frames=None
  )
  assert given_frames.visible_frames(everything, stride=4) is None


def test_nothing_given_is_none() -> None:
  assert _read() is None


@pytest.mark.parametrize("kind", ["image", "clip"])
@pytest.mark.parametrize(
  ("content", "said"),
  [
    ("neither picture nor video", "cannot be read: it is n"),
    ("version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
    ("<!DOCTYPE html><html></html>", "it is a web page"),
    ("", "it is empty"),
    (None, "there is no such file"),
  ],
)
def test_unreadable_file_is_refused_by_its_name(
  tmp_path: pathlib.Path, kind: str, content: str | None, said: str
) -> None:
  if content is not None:
    (tmp_path / "a").write_text(content)
  with pytest.raises(ValueError) as error:
    _read(**{kind: str(tmp_path / "a")})
  message = str(error.value)
  assert message.startswith(f"{kind}='{tmp_path}/a' cannot be read: ")
  assert said in message and message.endswith(".")
