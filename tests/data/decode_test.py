"""Tests of decoding: times, sizes, turning, segments and bad files."""

from fractions import Fraction
import socket
import struct

import av
import numpy as np
import pytest

from videomla_jax.data import decode
from videomla_jax.generation import mp4

SHAPE = decode.ClipShape(height=32, width=32, num_frames=4, fps=8.0)


def shape(**changes):
  fields = dict(height=32, width=32, num_frames=4, fps=8.0)
  return decode.ClipShape(**(fields | changes))


def write_numbered(path, num_frames, *, fps=8):
  """Frame i has the grey value 8 i + 4, which survives compression."""
  frames = np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * 8 + 4
  frames = np.broadcast_to(frames, (num_frames, 32, 32, 3))
  mp4.write_mp4(path, np.ascontiguousarray(frames), fps=fps)
  return path


def numbers(path, wanted=SHAPE, **options):
  """Frame numbers of each clip."""
  with decode.open_video(path) as opened:
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
  with decode.open_video(tmp_path / "v.mp4") as opened:
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
  with decode.open_video(path) as opened:
    assert opened.facts()[:2] == (64, 32)
    (clip,) = opened.clips(SHAPE)
  assert clip[:, :, 18:].min() > 180  # is now the right half
  assert clip[:, :, :14].max() < 40


def test_wide_pixels_are_made_square(tmp_path):
  frames = np.zeros((4, 32, 32, 3), np.uint8)
  frames[:, :, 8:24] = 200  # half of the width
  mp4.write_mp4(tmp_path / "v.mp4", frames, fps=8)
  _set_aspect(tmp_path / "v.mp4", tmp_path / "w.mp4", Fraction(2, 1))
  with decode.open_video(tmp_path / "w.mp4") as opened:
    assert opened.facts()[:2] == (32, 64)
    (clip,) = opened.clips(SHAPE)
  assert clip[:, :, 2:-2].min() > 180  # the middle 32 of 64 columns


def test_a_file_says_its_size_rate_and_length(tmp_path):
  path = write_numbered(tmp_path / "v.mp4", 12, fps=6)
  with decode.open_video(path) as opened:
    facts = opened.facts()
  assert facts == (32, 32, 6.0, pytest.approx(2.0, abs=1e-3))


def test_what_is_no_video_is_unusable_and_says_why(tmp_path):
  (tmp_path / "a.mp4").write_bytes(b"nothing of the kind")
  (tmp_path / "b.mp4").touch()
  for name, reason in (
    ("a.mp4", "not decodable"),
    ("b.mp4", "not decodable"),
    ("c.mp4", "no such file"),
  ):
    with pytest.raises(decode.UnusableVideo, match=reason):
      with decode.open_video(tmp_path / name):
        pass


@pytest.mark.parametrize("kind", ["concat", "hls", "sdp"])
def test_a_playlist_under_the_name_of_a_video_fetches_nothing(tmp_path, kind):
  with socket.create_server(("127.0.0.1", 0)) as server:
    url = f"http://127.0.0.1:{server.getsockname()[1]}/v.mp4"
    text = {
      "concat": f"ffconcat version 1.0\nfile '{url}'\n",
      "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n"
      "#EXT-X-ENDLIST\n",
      "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
      "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    }[kind]
    (tmp_path / "v.mp4").write_text(text)
    with pytest.raises(decode.UnusableVideo, match="not decodable"):
      with decode.open_video(tmp_path / "v.mp4"):
        pass
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
      server.accept()


def test_metadata_of_any_encoding_does_no_harm(tmp_path):
  path = write_numbered(tmp_path / "v.mp4", 4)
  data = path.read_bytes()
  assert data.count(b"Lavf") == 1  # who wrote it
  path.write_bytes(data.replace(b"Lavf", b"\xff\xfe\xe9\xff"))
  assert np.array_equal(numbers(path), [[0, 1, 2, 3]])


def test_shapes_must_be_positive():
  with pytest.raises(ValueError, match="clip.fps=0"):
    shape(fps=0)
