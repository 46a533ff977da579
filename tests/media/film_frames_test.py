"""Tests of colours, depths, transparency and directions of frames of clips."""

import av
import numpy as np
import pytest

from tests.media import films
from videomla_jax.media import clips
from videomla_jax.media import fitting

_SHAPE = fitting.FrameShape(height=32, width=32)


def _read(path, shape=_SHAPE):
  with clips.open_video(path) as video:
    part = video.last(shape, fps=16, most=100)
  return part.frames, part.changes


@pytest.mark.parametrize("name", films.MATRICES)
def test_clips_are_shown_upright(tmp_path, name):
  # Three corners differ, so that no two of the eight directions look alike.
  frames = np.zeros((3, 32, 48, 3), np.uint8)
  frames[:, :16, :24], frames[:, :16, 24:] = (220, 30, 30), (30, 220, 30)
  path = films.write(tmp_path / "v.mp4", frames)
  matrix = films.MATRICES[name]
  films.show_by(path, matrix)
  a, b, c, d = matrix
  rows, columns = (48, 32) if b else (32, 48)
  shown, _ = _read(path, fitting.FrameShape(height=rows, width=columns))
  # By the definition of the matrix, around the centre of the picture.
  for y, x in ((8, 12), (8, 36), (24, 12), (24, 36)):
    right, down = x - 24, y - 16
    place = (down * d + right * b + rows // 2, right * a + down * c)
    error = shown[0, place[0], place[1] + columns // 2] - frames[0, y, x] * 1.0
    assert np.abs(error).max() < 30, (name, y, x)


def _with_colours(path, value, *, matrix, limits, bits=8, transfer=None):
  """A clip of one colour in YCbCr, and what its tags say of it."""
  deep = bits > 8
  frames = np.zeros((3, 48, 32), np.uint16 if deep else np.uint8)
  for rows, part in zip(
    (slice(32), slice(32, 40), slice(40, 48)), value, strict=True
  ):
    frames[:, rows] = part

  def describe(thing):
    if matrix:
      thing.colorspace = matrix
    thing.color_range = limits
    if transfer:
      thing.color_trc, thing.color_primaries = transfer, 9

  return films.write(
    path,
    frames,
    pixels="yuv420p10le" if deep else "yuv420p",
    source="yuv420p10le" if deep else "yuv420p",
    options={"qp": "0"},
    describe=describe,
  )


@pytest.mark.parametrize("limits", [1, 2])
@pytest.mark.parametrize(
  ("matrix", "red", "blue"),
  [
    (None, 0.299, 0.114),
    (6, 0.299, 0.114),
    (1, 0.2126, 0.0722),
    (9, 0.2627, 0.0593),
  ],
)
def test_colours_are_those_of_the_tags(
  tmp_path, matrix, red, blue, limits, seed
):
  rng = np.random.default_rng(seed)
  value = rng.integers((90, 110, 110), (150, 150, 150))
  path = _with_colours(tmp_path / "v.mkv", value, matrix=matrix, limits=limits)
  frames, _ = _read(path)
  # Limited range: 219 and 224 steps; full range: 255 (ITU-R BT.601).
  y, b, r = (value - [16 if limits == 1 else 0, 128, 128]) / (
    [219, 224, 224] if limits == 1 else [255] * 3
  )
  r, b = y + 2 * (1 - red) * r, y + 2 * (1 - blue) * b
  g = (y - red * r - blue * b) / (1 - red - blue)
  expected = 255 * np.array([r, g, b])
  assert np.abs(frames[1, 16, 16] - expected).max() <= 3


@pytest.mark.parametrize("transfer", ["PQ", "HLG"])
def test_high_dynamic_range_is_brought_down(tmp_path, transfer):
  numbers = dict(PQ=16, HLG=18)
  # BT.2408: a white page has 58 % of PQ and 75 % of HLG.
  level = dict(PQ=0.58, HLG=0.75)[transfer]
  path = _with_colours(
    tmp_path / "v.mp4",
    (round(64 + 876 * level), 512, 512),
    matrix=9,
    limits=1,
    bits=10,
    transfer=numbers[transfer],
  )
  frames, changes = _read(path)
  assert frames[1].min() >= 244  # 8 bits of PQ are coarse
  assert {"depth", "colours"} <= {*changes.kinds}


def test_ten_bits_become_eight(tmp_path):
  path = films.write(
    tmp_path / "v.mp4", films.numbered(16), pixels="yuv420p10le"
  )
  frames, changes = _read(path)
  error = np.array(films.numbers(frames)) - np.arange(16)
  assert np.abs(error).max() <= 1
  assert "10 bits a channel became 8" in changes.texts


def test_grey_clips_are_read(tmp_path):
  path = films.write(tmp_path / "v.mp4", films.numbered(16), pixels="gray")
  assert _read(path)[0].shape == (16, 32, 32, 3)


@pytest.mark.parametrize(
  ("name", "codec", "pixels"),
  [
    ("v.mov", "png", "rgba"),
    ("v.mov", "qtrle", "argb"),
    ("v.webm", "libvpx-vp9", "yuva420p"),
  ],
)
def test_transparent_pixels_show_the_background(tmp_path, name, codec, pixels):
  frames = np.full((4, 32, 32, 4), 255, np.uint8)
  frames[:, :, 16:] = (255, 0, 255, 0)  # hidden below it lies magenta
  frames[:, :, :16] = (0, 0, 200, 255)
  path = films.write(tmp_path / name, frames, codec=codec, pixels=pixels)
  shown, changes = _read(path)
  assert np.abs(shown[:, :, :12] - np.array([0, 0, 200.0])).max() < 12
  assert shown[:, :, 20:].min() > 250
  assert "transparent pixels laid on white" in changes.texts


def test_an_opaque_alpha_channel_is_no_change(tmp_path):
  frames = np.full((2, 32, 32, 4), 255, np.uint8)
  path = films.write(tmp_path / "v.mov", frames, codec="png", pixels="rgba")
  frames, changes = _read(path)
  assert frames.min() == 255 and "background" not in changes.kinds


def test_interlaced_frames_are_told(tmp_path):
  path = films.write(
    tmp_path / "v.mp4",
    films.numbered(8, 64, 64),
    options={"x264-params": "tff=1"},
  )
  with av.open(str(path)) as file:
    assert next(file.decode(video=0)).interlaced_frame
  assert "interlaced" in _read(path)[1].kinds
