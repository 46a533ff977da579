"""Tests of times that only grow, and of bounds on work."""

import pathlib
import struct
import zlib

import av
import numpy as np
import pytest

from tests.media import films
from videomla_jax.media import clips
from videomla_jax.media import decoding
from videomla_jax.media import files
from videomla_jax.media import fitting

_SHAPE = fitting.FrameShape(height=32, width=48)


def _newest(path: pathlib.Path, *, most: int = 1000, fps: int = 16):
  with clips.open_video(path) as video:
    part = video.last(_SHAPE, fps=fps, most=most)
  return films.numbers(part.frames), part.total, part.changes


def test_clips_that_were_joined_go_on(tmp_path):
  one = films.write(tmp_path / "a.ts", films.numbered(16))
  two = films.write(tmp_path / "b.ts", films.numbered(16) + 64)
  path = tmp_path / "c.ts"
  path.write_bytes(one.read_bytes() + two.read_bytes())
  found, _, changes = _newest(path)
  assert [*dict.fromkeys(found)] == [*range(32)]
  assert "times" in changes.kinds


def test_a_frame_that_is_shown_for_years_is_not(tmp_path):
  times = [*(i / 16 for i in range(8)), *(1e6 + i / 16 for i in range(8))]
  path = films.write(tmp_path / "a.mkv", films.numbered(16), times=times)
  found, total, changes = _newest(path)
  assert total < 40 and {*found} == {*range(16)}
  assert "times" in changes.kinds


def test_streams_need_not_begin_at_zero(tmp_path):
  times = [100 + i / 16 for i in range(16)]
  path = films.write(tmp_path / "a.mkv", films.numbered(16), times=times)
  assert _newest(path)[0] == [*range(16)]


def test_frames_without_times_are_counted(tmp_path):
  path = films.write(tmp_path / "a.h264", films.numbered(25), container="h264")
  found, _, changes = _newest(path, fps=25)
  assert found == [*range(25)]
  assert "times" in changes.kinds


def test_a_clip_that_hides_its_length_is_read_from_near_its_end(
  tmp_path, monkeypatch
):
  """Browsers record WebM whose header says no length."""
  frames = np.tile(films.numbered(60), (5, 1, 1, 1))
  path = films.write(
    tmp_path / "a.webm", frames, codec="libvpx", options={"g": "30"}
  )
  _, whole, _ = _newest(path)
  path.write_bytes(_without_length(path.read_bytes()))
  with av.open(str(path)) as file:
    assert not file.duration and not file.streams.video[0].duration
  # Of 300 frames less than a third are decoded.
  cost = decoding._PACKET + 2 * 32 * 48 + (1 << 11) + 1024
  monkeypatch.setattr(decoding, "_MOST_WORK", 100 * cost)
  found, total, _ = _newest(path, most=10)
  assert np.abs(np.array(found) - np.arange(50, 60)).max() <= 1
  assert total == whole == 300


def _without_length(data: bytes) -> bytes:
  """Makes the element Duration (0x4489) and its copy in tags say nothing."""
  at = data.index(b"\x44\x89\x88")
  data = data[:at] + b"\xec\x89" + bytes(9) + data[at + 11 :]  # Void
  return data.replace(b"DURATION", b"XURATION")


@pytest.mark.parametrize("reader", ["first", "last", "clips", "later"])
def test_work_has_an_end(tmp_path, monkeypatch, reader):
  path = films.write(tmp_path / "a.mp4", films.numbered(48))
  monkeypatch.setattr(decoding, "_MOST_WORK", 20 * decoding._PACKET)
  with pytest.raises(decoding.TooMuchWork, match="takes too long"):
    with clips.open_video(path) as video:
      shape = clips.ClipShape(height=32, width=48, num_frames=40, fps=16)
      if reader == "first":
        video.first(_SHAPE, fps=16, most=40)
      elif reader == "last":
        video.last(_SHAPE, fps=16, most=40)
      else:
        start = 1.9 if reader == "later" else 0.0
        [*video.clips(shape, start=start)]


def test_every_clip_of_a_long_video_may_take_as_much(tmp_path, monkeypatch):
  path = films.write(
    tmp_path / "a.mp4", films.numbered(60), options={"bf": "0"}
  )
  monkeypatch.setattr(decoding, "_MOST_WORK", 40 * decoding._PACKET)
  shape = clips.ClipShape(height=32, width=48, num_frames=4, fps=16)
  with clips.open_video(path) as video:
    assert len([*video.clips(shape, max_clips=99)]) == 15


def _png(side: int) -> bytes:
  def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check

  head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
  body = chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


@pytest.mark.parametrize("told", [True, False])
def test_huge_frames_are_refused_before_they_are_decoded(tmp_path, told):
  path = tmp_path / "a.mov"
  with av.open(str(path), "w") as file:
    stream = file.add_stream("png", rate=16)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
    for i in range(3):
      packet = av.Packet(_png(16_384))
      packet.stream, packet.pts, packet.dts = stream, i, i
      packet.time_base, packet.is_keyframe = stream.codec_context.time_base, 1
      file.mux(packet)
  if told:
    data = bytearray(path.read_bytes())
    at = data.index(b"png ", data.index(b"stsd")) + 28
    data[at : at + 4] = struct.pack(">HH", 16_384, 16_384)
    path.write_bytes(data)
  with pytest.raises(files.Unusable, match="pixels|not decodable"):
    with clips.open_video(path):
      pass


@pytest.mark.parametrize("place", ["first", "middle"])
def test_damage_ends_a_clip_or_is_passed_over(tmp_path, place, seed):
  rng = np.random.default_rng(seed)
  frames = rng.integers(0, 256, (32, 32, 48, 3), dtype=np.uint8)
  path = films.write(tmp_path / "a.mov", frames, codec="png", pixels="rgb24")
  whole = _newest(path)[1]
  data = path.read_bytes()
  packets = [i for i in range(len(data)) if data[i : i + 4] == b"\x89PNG"]
  at = packets[0 if place == "first" else 16]
  path.write_bytes(data[:at] + bytes(8) + data[at + 8 :])
  _, total, changes = _newest(path)
  assert whole == len(packets) == 32
  # A player shows the second frame in place of the first.
  # Threads of the decoder hold back a few frames, which damage takes along.
  assert total == 32 if place == "first" else 8 < total <= 16
  assert ("damage" in changes.kinds) == (place == "middle")
