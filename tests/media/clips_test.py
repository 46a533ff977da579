"""Tests of decoding: times, sizes, turning, segments and bad files."""

from fractions import Fraction
import struct

import av
import numpy as np
import pytest

from tests.media import films
from videomla_jax.generation import mp4
from videomla_jax.media import clips
from videomla_jax.media import files
from videomla_jax.media import fitting

SHAPE = clips.ClipShape(height=32, width=32, num_frames=4, fps=8.0)


def shape(**changes):
  fields = dict(height=32, width=32, num_frames=4, fps=8.0)
  return clips.ClipShape(**(fields | changes))


def write_numbered(path, num_frames, *, fps=8):
  """Frame i has the grey value 8 i + 4, which survives compression."""
  frames = np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * 8 + 4
  frames = np.broadcast_to(frames, (num_frames, 32, 32, 3))
  mp4.write_mp4(path, np.ascontiguousarray(frames), fps=fps)
  return path


def numbers(path, wanted=SHAPE, **options):
  """Frame numbers of each clip."""
  with clips.open_video(path) as opened:
    made = opened.clips(wanted, **options)
    return [((c.mean((1, 2, 3)) - 4) / 8).round().astype(int) for c in made]


def test_clips_follow_each_other_and_a_rest_is_dropped(tmp_path):
  path = write_numbered(tmp_path / "v.mp4", 11)
  assert np.array_equal(
    numbers(path, max_clips=9), [[0, 1, 2, 3], [4, 5, 6, 7]]
  )
  assert np.array_equal(numbers(path), [[0, 1, 2, 3]])


@pytest.mark.parametrize(
  ("fps", "expected"),
  [(4.0, [0, 2, 4, 6]), (16.0, [0, 0, 1, 1]), (6.0, [0, 1, 2, 4])],
)
def test_a_frame_is_what_a_player_shows_at_its_time(tmp_path, fps, expected):
  path = write_numbered(tmp_path / "v.mp4", 8)
  assert np.array_equal(numbers(path, shape(fps=fps))[0], expected)


def test_a_segment_begins_and_ends_where_it_says(tmp_path):
  path = write_numbered(tmp_path / "v.mp4", 30)
  found = numbers(path, start=1.0, seconds=1.0, max_clips=9)
  assert np.array_equal(found, [[8, 9, 10, 11], [12, 13, 14, 15]])
  # Far enough to seek.
  assert np.array_equal(numbers(path, start=2.5), [[20, 21, 22, 23]])
  assert numbers(path, start=1.0, seconds=0.3) == []
  assert numbers(path, start=9.0) == []


def test_frames_cover_the_size_and_are_cut_around_the_centre(tmp_path):
  frames = np.zeros((4, 32, 96, 3), np.uint8)
  frames[:, :, 32:64] = 200  # the middle third
  mp4.write_mp4(tmp_path / "v.mp4", frames, fps=8)
  with clips.open_video(tmp_path / "v.mp4") as opened:
    (clip,) = opened.clips(SHAPE)
  assert clip.shape == (4, 32, 32, 3)
  assert clip[:, :, 2:-2].min() > 180


def _set_aspect(source, target, aspect):
  """Muxes again with wide pixels, as DVDs have them."""
  with av.open(str(source)) as given, av.open(str(target), "w") as made:
    stream = made.add_stream_from_template(given.streams.video[0])
    stream.sample_aspect_ratio = aspect
    stream.codec_context.sample_aspect_ratio = aspect
    for packet in given.demux(video=0):
      if packet.dts is not None:
        packet.stream = stream
        made.mux(packet)


def _turn_clockwise(path):
  """Changes the matrix of the track header, as phones do (ISO 14496-12)."""
  data = bytearray(path.read_bytes())
  matrix = data.index(b"tkhd") + 4 + 40
  turned = (0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
  data[matrix : matrix + 36] = struct.pack(">9i", *turned)
  path.write_bytes(data)


def test_a_video_of_a_phone_is_turned_upright(tmp_path):
  frames = np.zeros((4, 32, 64, 3), np.uint8)
  frames[:, :16] = 200  # the upper half of what the sensor saw
  path = tmp_path / "v.mp4"
  mp4.write_mp4(path, frames, fps=8)
  _turn_clockwise(path)
  with clips.open_video(path) as opened:
    assert opened.facts()[:2] == (64, 32)
    (clip,) = opened.clips(SHAPE)
  assert clip[:, :, 18:].min() > 180  # is now the right half
  assert clip[:, :, :14].max() < 40


def test_wide_pixels_are_made_square(tmp_path):
  frames = np.zeros((4, 32, 32, 3), np.uint8)
  frames[:, :, 8:24] = 200  # half of the width
  mp4.write_mp4(tmp_path / "v.mp4", frames, fps=8)
  _set_aspect(tmp_path / "v.mp4", tmp_path / "w.mp4", Fraction(2, 1))
  with clips.open_video(tmp_path / "w.mp4") as opened:
    assert opened.facts()[:2] == (32, 64)
    (clip,) = opened.clips(SHAPE)
  assert clip[:, :, 2:-2].min() > 180  # the middle 32 of 64 columns


def test_a_file_says_its_size_rate_and_length(tmp_path):
  path = write_numbered(tmp_path / "v.mp4", 12, fps=6)
  with clips.open_video(path) as opened:
    facts = opened.facts()
  assert facts == (32, 32, 6.0, pytest.approx(2.0, abs=1e-3))


def test_what_is_no_video_is_unusable_and_says_why(tmp_path):
  (tmp_path / "a.mp4").write_bytes(b"nothing of the kind")
  (tmp_path / "b.mp4").touch()
  for name, reason in (
    ("a.mp4", "not decodable"),
    ("b.mp4", "it is empty"),
    ("c.mp4", "no such file"),
  ):
    with pytest.raises(files.Unusable, match=reason):
      with clips.open_video(tmp_path / name):
        pass


def test_metadata_of_any_encoding_does_no_harm(tmp_path):
  path = write_numbered(tmp_path / "v.mp4", 4)
  data = path.read_bytes()
  assert data.count(b"Lavf") == 1  # who wrote it
  path.write_bytes(data.replace(b"Lavf", b"\xff\xfe\xe9\xff"))
  assert np.array_equal(numbers(path), [[0, 1, 2, 3]])


def test_shapes_must_be_positive():
  with pytest.raises(ValueError, match="clip.fps=0"):
    shape(fps=0)


_WHOLE = fitting.FrameShape(height=32, width=48)


def newest(path, *, fps=16, most=1000):
  """Numbers of the newest frames, how many there are, and the changes."""
  with clips.open_video(path) as video:
    part = video.last(_WHOLE, fps=fps, most=most)
  return films.numbers(part.frames), part.total, part.changes


def test_a_clip_of_another_rate_keeps_its_speed(tmp_path):
  path = films.write(tmp_path / "v.mp4", films.numbered(60), rate=30)
  found, total, changes = newest(path, fps=16)
  # Two seconds, whose frames are those shown at k / 16 s.
  assert total == len(found) == 32
  shown = np.floor(np.arange(32) * 30 / 16 + 1e-6)
  assert np.abs(np.array(found) - shown).max() <= 1
  assert any("frames per second" in text for text in changes.texts)


def test_varying_rates_are_shown_as_by_a_player(tmp_path):
  times = [0.1 * i if i < 10 else 1 + 0.02 * (i - 10) for i in range(30)]
  path = films.write(tmp_path / "v.mkv", films.numbered(30), times=times)
  found, _, _ = newest(path, fps=10)
  assert found[:14] == [*range(10), 10, 15, 20, 25]


@pytest.mark.parametrize("most", [1, 5, 1000])
def test_the_newest_frames_are_kept(tmp_path, most):
  path = films.write(tmp_path / "v.mp4", films.numbered(40))
  found, total, _ = newest(path, most=most)
  assert total == 40
  assert found == [*range(40)][-most:]


@pytest.mark.parametrize("name", ["v.mp4", "v.ts", "v.webm"])
def test_the_end_of_a_long_clip_is_that_of_the_whole_one(tmp_path, name):
  frames = np.tile(films.numbered(60), (4, 1, 1, 1))
  codec = "libvpx-vp9" if name == "v.webm" else "libx264"
  path = films.write(tmp_path / name, frames, codec=codec, options={"g": "20"})
  with clips.open_video(path) as video:
    assert video.facts().seconds == pytest.approx(15, abs=0.1)
    end = video.last(_WHOLE, fps=16, most=20)
  with clips.open_video(path) as video:
    whole = video.last(_WHOLE, fps=16, most=1000)
  assert whole.total == len(whole.frames) == end.total == 240
  np.testing.assert_array_equal(end.frames, whole.frames[-20:])


def test_a_wrong_length_does_not_change_the_end(tmp_path):
  path = films.write(tmp_path / "v.mp4", films.numbered(32))
  data = bytearray(path.read_bytes())
  for name in (b"mvhd", b"tkhd", b"mdhd"):
    place = data.index(name) + (24 if name == b"tkhd" else 20)
    data[place : place + 4] = struct.pack(">I", 10**6)
  path.write_bytes(data)
  found, total, _ = newest(path, most=4)
  assert (found, total) == ([28, 29, 30, 31], 32)


def test_both_readers_give_the_same_pixels(tmp_path, seed):
  frames = np.random.default_rng(seed).integers(0, 256, (24, 40, 72, 3))
  path = films.write(tmp_path / "v.mp4", frames.astype(np.uint8), rate=12)
  films.show_by(path, films.MATRICES["right"])
  with clips.open_video(path) as video:
    stored = [*video.clips(shape(num_frames=4), max_clips=4)]
  with clips.open_video(path) as video:
    part = video.last(SHAPE.frame, fps=8, most=1000)
  np.testing.assert_array_equal(np.concatenate(stored), part.frames)
  with clips.open_video(path) as video:
    first = video.first(SHAPE.frame, fps=8, most=7)
  np.testing.assert_array_equal(first.frames, part.frames[:7])


def test_a_cover_picture_is_no_video(tmp_path):
  path = films.write(tmp_path / "v.mp4", films.numbered(16))
  films.add_cover(path)
  with av.open(str(path)) as file:
    assert file.streams.video[0].codec_context.name == "mjpeg"
  assert newest(path)[0] == [*range(16)]


@pytest.mark.parametrize("small_first", [True, False])
def test_the_larger_of_two_videos_is_read(tmp_path, small_first):
  """Cameras store a preview beside the film."""
  sizes = [(16, 16), (64, 96)][:: 1 if small_first else -1]
  path = tmp_path / "v.mkv"
  with av.open(str(path), "w") as file:
    for height, width in sizes:
      stream = file.add_stream("libx264", rate=16)
      stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    for i in range(8):
      for stream in file.streams.video:
        pixels = films.numbered(8, stream.height, stream.width)[i]
        pixels = pixels if stream.height == 64 else pixels * 0 + 250
        frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), "rgb24")
        frame.pts, frame.time_base = i, Fraction(1, 16)
        file.mux(stream.encode(frame))
    for stream in file.streams.video:
      file.mux(stream.encode(None))
  assert newest(path)[0] == [*range(8)]


def test_a_file_without_video_says_so(tmp_path):
  path = films.write_sound(tmp_path / "v.mp4")
  with pytest.raises(files.Unusable, match="it holds no video"):
    with clips.open_video(path):
      pass


def test_a_clip_that_was_cut_off_is_used_as_far_as_it_goes(tmp_path):
  frames = np.random.default_rng(0).integers(0, 256, (64, 32, 48, 3))
  path = films.write(tmp_path / "v.mkv", frames.astype(np.uint8))
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  with clips.open_video(path) as video:
    part = video.last(_WHOLE, fps=16, most=100)
  assert 16 <= part.total == len(part.frames) < 48
  assert "damage" in part.changes.kinds


def test_one_frame_is_a_clip(tmp_path):
  path = films.write(
    tmp_path / "v.gif", films.numbered(1), codec="gif", pixels="rgb8"
  )
  assert newest(path)[1] >= 1
