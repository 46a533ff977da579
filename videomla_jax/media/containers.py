"""Opens clips with FFmpeg, which is held to formats and codecs of video.

FFmpeg reads playlists, scripts, devices, addresses and the formats of a hundred
old games. Of these, a file that a stranger made may use what stands here, and
its bytes come from a file that is open already: FFmpeg itself opens nothing.
"""

from collections.abc import Iterator
import contextlib
import os
from typing import BinaryIO, NoReturn

import av

from videomla_jax.media import files

# Columns times rows. A decoder may keep 17 frames, of up to 3 bytes a pixel at
# ten bits: 0.9 GB.
MOST_PIXELS = 1 << 24
_MOST_STREAMS = 100
_OPENING = 60.0  # seconds, most of which a damaged index may take
_BUFFER = 1 << 18  # bytes that are read at once
_MOST_THREADS = 4

# Names of FFmpeg's demuxers. None of them opens a second file: playlists and
# lists of files (hls, dash, concat, image2, sdp and kin) are missing.
FORMATS = (
  "mov,mp4,m4a,3gp,3g2,mj2",
  *("matroska,webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "flv"),
  *("ogg", "asf", "mxf", "nut", "dv", "gif", "apng", "webp_anim", "ivf"),
  *("yuv4mpegpipe", "h264", "hevc", "obu"),
)
# Names of FFmpeg's decoders.
CODECS = (
  *("h264", "hevc", "vvc", "libdav1d", "libaom-av1", "vp8", "vp9"),
  *("libvpx", "libvpx-vp9", "vp6", "vp6a", "vp6f", "theora"),
  *("mpeg1video", "mpeg2video", "mpeg4", "h261", "h263", "h263p", "flv"),
  *("msmpeg4v1", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2", "wmv3", "vc1"),
  *("mjpeg", "mjpegb", "jpeg2000", "png", "apng", "gif", "webp", "webp_anim"),
  *("prores", "dnxhd", "cfhd", "dvvideo", "qtrle", "svq1", "svq3", "cinepak"),
  *("ffv1", "huffyuv", "ffvhuff", "utvideo", "magicyuv", "lagarith"),
  *("rawvideo", "v210", "v308", "v408", "r210", "y41p", "yuv4"),
)
_NOT_VIDEO = (
  av.stream.Disposition.attached_pic  # the cover of a song
  | av.stream.Disposition.timed_thumbnails
  | av.stream.Disposition.still_image
)
# Decoders that read transparency, which FFmpeg's own leave out.
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


class _Nameless:
  """An open file that has no name by which FFmpeg could guess or open."""

  name = "clip"

  def __init__(self, file: BinaryIO) -> None:
    """Takes the methods that reading needs."""
    self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _refuse(url: str, flags: int, options: object) -> NoReturn:
  """Stands for FFmpeg's function that opens further files."""
  raise files.Unusable("its pictures lie in another file; give that file")


@contextlib.contextmanager
def explained() -> Iterator[None]:
  """Turns whatever FFmpeg and PyAV raise on bad files into `Unusable`."""
  try:
    yield
  except files.Unusable:
    raise
  except av.error.FFmpegError as error:
    # Its text has the name of the file, which differs between machines.
    raise files.Unusable(f"it is not decodable: {_plain(error)}") from error
  # PyAV itself raises these on numbers that no file should have.
  except (ArithmeticError, AttributeError, LookupError) as error:
    raise files.Unusable("it is not decodable") from error
  except (MemoryError, OSError, RuntimeError) as error:
    raise files.Unusable("it is not decodable") from error
  except (TypeError, ValueError) as error:
    raise files.Unusable("it is not decodable") from error


def _plain(error: av.error.FFmpegError) -> str:
  """Says in FFmpeg's words what is wrong."""
  if isinstance(error, av.error.ArgumentError):  # What a whitelist raises.
    return "it is no MP4, WebM or other common format of video"
  if isinstance(error, av.error.EOFError):
    return "it ends too early or holds no frames"
  return str(error.strerror)


@contextlib.contextmanager
def open_container(
  path: str | os.PathLike[str],
) -> Iterator[av.container.InputContainer]:
  """Opens a file with FFmpeg for the `with` block.

  Args:
    path: The file.

  Yields:
    The open container.

  Raises:
    files.Unusable: If it is no regular file, or none of the formats.
  """
  with files.open_regular(path) as file:
    with explained():
      container = av.open(
        _Nameless(file),
        options={
          "format_whitelist": ",".join(FORMATS),
          "codec_whitelist": ",".join(CODECS),
          "protocol_whitelist": "none",
          "max_streams": str(_MOST_STREAMS),
          "max_pixels": str(MOST_PIXELS),
          "enable_drefs": "0",
          "use_absolute_path": "0",
        },
        buffer_size=_BUFFER,
        timeout=_OPENING,
        io_open=_refuse,
      )
    assert isinstance(container, av.container.InputContainer)
    with container:
      yield container


def video_stream(
  container: av.container.InputContainer,
) -> av.video.stream.VideoStream:
  """Chooses the stream that a player shows; all others are skipped.

  Args:
    container: An open file.

  Raises:
    files.Unusable: If there is none.
  """
  films = [s for s in container.streams.video if not s.disposition & _NOT_VIDEO]
  if not films:
    still = len(container.streams.video)
    what = "only a still picture" if still else "no video, or ends before it"
    raise files.Unusable(f"it holds {what}; give a file with a video stream")
  # Small second streams are previews, unless the file says otherwise.
  chosen = max(films, key=_rank)
  for stream in container.streams:
    if stream.index != chosen.index:
      stream.discard = av.stream.Discard.all
  return chosen


def _rank(stream: av.video.stream.VideoStream) -> tuple[bool, int]:
  """Orders streams by how likely a player shows them."""
  context = stream.codec_context
  size = 0 if context is None else context.width * context.height
  return bool(stream.disposition & av.stream.Disposition.default), size


def decoder(
  stream: av.video.stream.VideoStream,
) -> av.video.codeccontext.VideoCodecContext:
  """Makes the decoder of a stream, with bounded threads and frames.

  Args:
    stream: A stream of an open file.

  Raises:
    files.Unusable: If its codec is none that is decoded.
  """
  context = stream.codec_context
  if context is None or context.codec.name not in CODECS:
    name = "an unknown codec" if context is None else context.codec.name
    raise files.Unusable(
      f"its video is in {name}, which is not decoded; convert it to H.264"
    )
  if context.width * context.height > MOST_PIXELS:
    raise files.Unusable(
      f"its frames have {context.width} x {context.height} pixels; make them "
      f"smaller than {MOST_PIXELS // 10**6} megapixels"
    )
  with_alpha = _WITH_ALPHA.get(context.codec.name)
  if with_alpha and stream.metadata.get("alpha_mode") == "1":
    context = av.CodecContext.create(with_alpha, "r")
  assert isinstance(context, av.video.codeccontext.VideoCodecContext)
  context.options = {"max_pixels": str(MOST_PIXELS)}
  # FFmpeg decodes frames and slices in threads only if asked to. Each thread
  # holds a frame.
  context.thread_type = "AUTO"
  context.thread_count = min(_MOST_THREADS, os.cpu_count() or 1)
  return context
