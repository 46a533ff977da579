"""Small clips of the kinds that people have, and of some that they should not.

Frame i of a numbered clip has the grey value 4 i + 4, which survives codecs.
"""

from collections.abc import Callable
from collections.abc import Sequence
import fractions
import io
import pathlib
import struct
from typing import Any

import av
import numpy as np
from PIL import Image

MATRICES = {
  "upright": (1, 0, 0, 1),
  "right": (0, 1, -1, 0),
  "half": (-1, 0, 0, -1),
  "left": (0, -1, 1, 0),
  "mirrored": (-1, 0, 0, 1),
  "upside down": (1, 0, 0, -1),
  "diagonal": (0, 1, 1, 0),
  "other diagonal": (0, -1, -1, 0),
}  # a, b, c, d: x, y is shown at a x + c y, b x + d y


def numbered(count: int, height: int = 32, width: int = 48) -> np.ndarray:
  """Frames that say their number."""
  grey = np.arange(count, dtype=np.uint8)[:, None, None, None] * 4 + 4
  return np.ascontiguousarray(np.broadcast_to(grey, (count, height, width, 3)))


def numbers(frames: np.ndarray) -> list[int]:
  """The numbers that frames say."""
  return ((frames.mean((1, 2, 3)) - 4) / 4).round().astype(int).tolist()


def write(
  path: pathlib.Path,
  frames: np.ndarray,
  *,
  times: Sequence[float] | None = None,
  rate: int = 16,
  codec: str = "libx264",
  pixels: str = "yuv420p",
  container: str | None = None,
  source: str = "",
  options: dict[str, str] | None = None,
  describe: Callable[[Any], None] = lambda thing: None,
) -> pathlib.Path:
  """Encodes frames.

  Args:
    path: The file.
    frames: Pixels; RGB or RGBA unless `source` says otherwise.
    times: Second at which each begins; None is evenly spaced.
    rate: Frames per second that the file says.
    codec: FFmpeg's encoder.
    pixels: Pixel format.
    container: FFmpeg's muxer; None is told by the name.
    source: Pixel format of `frames`.
    options: Of the encoder.
    describe: Is given the codec and every frame, to set their colours.
  """
  source = source or ("rgba" if frames.shape[-1] == 4 else "rgb24")
  base = fractions.Fraction(1, 1000 if times is not None else rate)
  with av.open(str(path), "w", format=container) as file:
    stream = file.add_stream(codec, rate=rate)
    height = frames.shape[1] * 2 // 3 if source in _PLANES else frames.shape[1]
    stream.height, stream.width = height, frames.shape[2]
    stream.pix_fmt = pixels
    stream.options = options or {}
    stream.codec_context.time_base = base
    describe(stream.codec_context)
    for i, pixel in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixel), source)
      frame.pts = i if times is None else round(times[i] * 1000)
      frame.time_base = base
      describe(frame)
      file.mux(stream.encode(frame))
    file.mux(stream.encode(None))
  return path


_PLANES = ("yuv420p", "yuv420p10le")


def show_by(path: pathlib.Path, matrix: tuple[int, int, int, int]) -> None:
  """Changes the matrix of an MP4's track, as phones do (ISO 14496-12)."""
  data = bytearray(path.read_bytes())
  at = data.index(b"tkhd") + 4 + 40
  a, b, c, d = (x << 16 for x in matrix)
  data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
  path.write_bytes(data)


def add_cover(path: pathlib.Path) -> None:
  """Puts a cover picture before the video track of an MP4, as songs have."""
  cover = io.BytesIO()
  Image.new("RGB", (64, 64), (9, 9, 200)).save(cover, "JPEG")
  data = _box(b"data", struct.pack(">II", 13, 0) + cover.getvalue())
  items = _box(b"ilst", _box(b"covr", data))
  handler = _box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
  about = _box(b"udta", _box(b"meta", bytes(4) + handler + items))
  film = path.read_bytes()
  at = film.index(b"moov") - 4
  # The index stands at the end, so no offset into the data changes.
  assert film.index(b"mdat") < at
  path.write_bytes(film[:at] + _box(b"moov", about + film[at + 8 :]))


def _box(kind: bytes, content: bytes) -> bytes:
  return struct.pack(">I", 8 + len(content)) + kind + content


def write_sound(path: pathlib.Path) -> pathlib.Path:
  """Writes a file without any pictures."""
  with av.open(str(path), "w") as file:
    stream = file.add_stream("aac", rate=44_100)
    for i in range(20):
      silence = np.zeros((1, 1024), np.float32)
      frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
      frame.sample_rate, frame.pts = 44_100, i * 1024
      file.mux(stream.encode(frame))
    file.mux(stream.encode(None))
  return path
