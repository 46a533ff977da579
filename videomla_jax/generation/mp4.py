"""Videos in MP4: H.264 that browsers play, written chunk by chunk, and read.

A file is written under a temporary name and renamed when complete, so a failure
leaves nothing behind and a reader never sees half a file.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import fractions
import os
import pathlib
from types import TracebackType
from typing import NamedTuple

import av
from jaxtyping import UInt8
import numpy as np

from videomla_jax.generation import pixels
from videomla_jax.media import clips
from videomla_jax.media import files
from videomla_jax.storage import atomic
from videomla_jax.storage import output_folder

PathLike = str | os.PathLike[str]
Frames = pixels.Frames

_CRF = "16"  # Visually lossless; small frames cost little anyway.
# Rows: Y, Cb, Cr of RGB in 0..255 (BT.601, equations 2.5.1 to 2.5.3, as used
# for pictures of standard height).
_BT601 = np.array(
  [
    [65.481, 128.553, 24.966],
    [-37.797, -74.203, 112.0],
    [112.0, -93.786, -18.214],
  ],
  np.float32,
) / np.float32(255)
_BT601_TAG = 6  # SMPTE 170M in H.264's table of matrices.
_BT601_OFFSET = np.array([16, 128, 128], np.float32)


class Mp4Writer:
  """Writes an MP4 file chunk by chunk; use it in a `with` block."""

  def __init__(
    self, path: PathLike, *, fps: float | int, scale: int = 1
  ) -> None:
    """Checks the arguments; the size comes with the first frames.

    Args:
      path: File to write, replaced only when the block ends well.
      fps: Frames per second, positive.
      scale: Number of times that every pixel is repeated along each side.

    Raises:
      ValueError: If a number is out of range, the folder is not writable, or
        the file cannot have its name.
    """
    if fps <= 0:
      raise ValueError(f"fps={fps} must be positive; give frames per second.")
    if scale < 1:
      raise ValueError(f"scale={scale} must be at least 1; use 1 or more.")
    self._path = pathlib.Path(path)
    output_folder.check_file(self._path)
    self._stack = contextlib.ExitStack()
    # MP4 counts time in fractions; 1001 is the denominator of 29.97.
    self._fps = fractions.Fraction(fps).limit_denominator(1001)
    self._scale = scale
    self._shape: tuple[int, ...] | None = None
    self._encoder: _Encoder | None = None
    # It is made with the first frame, so that nothing has to be tidied up after
    # a video that never begins.
    self._temporary: pathlib.Path | None = None
    self.num_frames = 0

  def append(self, frames: Frames) -> None:
    """Encodes the next frames.

    Args:
      frames: Grey or RGB frames, all of the size of the first ones.

    Raises:
      ValueError: If channels or size do not fit.
      OSError: If the frames cannot be written, as on a full disk.
    """
    pixels.check_frames(frames)
    if not len(frames):
      return  # A container that got no frame cannot be closed.
    if self._encoder is None:
      self._begin(frames.shape[1:])
    elif frames.shape[1:] != self._shape:
      raise ValueError(
        f"frames of shape {frames.shape[1:]} follow frames of shape"
        f" {self._shape}; give every chunk the same size."
      )
    assert self._encoder is not None
    with _told(self._path):
      for frame in frames:
        planes = _to_yuv420(pixels.enlarge(frame, self._scale))
        image = av.VideoFrame.from_ndarray(planes, "yuv420p")
        image.pts = self.num_frames
        image.time_base = 1 / self._fps
        self._encoder.container.mux(self._encoder.stream.encode(image))
        self.num_frames += 1

  def _begin(self, shape: tuple[int, ...]) -> None:
    """Opens the file when the size of the frames is known."""
    self._shape = shape
    # Nothing with the final name is ever half a file, not even after SIGKILL.
    self._temporary = self._stack.enter_context(atomic.replacing(self._path))
    with _told(self._path):
      self._encoder = _open(
        self._temporary, shape, fps=self._fps, scale=self._scale
      )

  def abort(self) -> None:
    """Drops what was written; an older file at the path stays."""
    self._end(RuntimeError("the video is dropped"))

  def close(self) -> None:
    """Completes the file and puts it in place.

    Raises:
      ValueError: If no frame was appended.
      OSError: If it cannot be written, as on a full disk.
    """
    if self._encoder is None or self.num_frames == 0:
      self.abort()
      raise ValueError(
        f"video {str(self._path)!r} has no frames; append at least one."
      )
    try:
      with _told(self._path):
        # Encoding nothing makes the encoder give out what it holds back.
        self._encoder.container.mux(self._encoder.stream.encode(None))
        self._encoder.container.close()
    except BaseException as error:
      self._end(error)
      raise
    self._encoder = None
    self._end(None)

  def _end(self, error: BaseException | None) -> None:
    """Puts the temporary file in place, or removes it after an error."""
    encoder, self._encoder = self._encoder, None
    if encoder is not None:
      # The end of a file does not fit on a full disk either.
      with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
        encoder.container.close()
    if error is None:
      self._stack.close()
    else:
      with contextlib.suppress(type(error)):
        self._stack.__exit__(type(error), error, error.__traceback__)

  def __enter__(self) -> "Mp4Writer":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    """Completes the file, or drops it if the block failed."""
    if kind is None:
      self.close()
    else:
      self.abort()


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
  """Turns FFmpeg's errors into those of the system, with the file's name."""
  try:
    yield
  except av.error.FFmpegError as error:
    raise OSError(error.errno, error.strerror, str(path)) from error


class _Encoder(NamedTuple):
  """An open MP4 file and the H.264 stream in it."""

  container: av.container.OutputContainer
  stream: av.VideoStream


def _open(
  path: pathlib.Path,
  shape: tuple[int, ...],
  *,
  fps: fractions.Fraction,
  scale: int,
) -> _Encoder:
  """Opens a file for frames of shape `[h, w, c]`."""
  # The index goes first (faststart), so playing starts while loading.
  container = av.open(
    str(path), "w", format="mp4", options={"movflags": "+faststart"}
  )
  stream = container.add_stream("libx264", rate=fps)
  # 4:2:0 stores colour for 2x2 blocks: sides are padded to even.
  stream.height, stream.width = (pixels.even(x * scale) for x in shape[:2])
  stream.pix_fmt = "yuv420p"
  # Without this tag a player guesses the matrix from the size of the frame.
  stream.codec_context.colorspace = _BT601_TAG
  # There is a key frame every two seconds, so that seeking is exact enough.
  gop = str(max(1, round(2 * fps)))
  stream.options = {
    "crf": _CRF,
    "preset": "medium",
    "g": gop,
    # The vector code of mbtree reads memory beyond small frames: about one
    # in three files of equal videos differed.
    "x264-params": "no-mbtree=1",
  }
  return _Encoder(container, stream)


def write_mp4(
  path: PathLike,
  frames: Frames | Iterable[Frames],
  *,
  fps: float | int,
  scale: int = 1,
) -> int:
  """Writes frames, or chunks of frames as they come, as an MP4 file.

  Args:
    path: File to write or replace.
    frames: Grey or RGB frames, or an iterable of such arrays.
    fps: Frames per second, positive.
    scale: Number of times that every pixel is repeated along each side.

  Returns:
    Number of frames written.

  Raises:
    ValueError: If frames do not fit or the folder is not writable.
  """
  chunks = [frames] if isinstance(frames, np.ndarray) else frames
  with Mp4Writer(path, fps=fps, scale=scale) as writer:
    for chunk in chunks:
      writer.append(chunk)
  return writer.num_frames


def read_mp4(
  path: PathLike,
) -> tuple[UInt8[np.ndarray, "t h w 3"], float]:
  """Decodes all frames of a video file.

  Args:
    path: The file, in any format that FFmpeg reads.

  Returns:
    RGB frames and the frames per second.

  Raises:
    ValueError: If the file is missing or no video.
  """
  try:
    with clips.open_video(path) as video:
      rate = video.facts().fps
      frames = np.stack([*video.stored()])
  except files.Unusable as error:
    raise ValueError(
      f"video {str(path)!r} cannot be read ({error}); give an MP4 file."
    ) from error
  if rate is None:
    raise ValueError(f"video {str(path)!r} has no frame rate; write it again.")
  return frames, rate


def _to_yuv420(
  frame: UInt8[np.ndarray, "h w 3"],
) -> UInt8[np.ndarray, "rows w"]:
  """Converts a frame to one plane of luma and two of chroma at half size.

  The planes lie one below another, ITU-R BT.601, limited range. The codec
  library's own conversion reads beyond rows of small frames, so that equal
  videos gave unequal files.
  """
  height, width, _ = frame.shape
  luma, *chroma = np.moveaxis(frame @ _BT601.T + _BT601_OFFSET, -1, 0)
  blocks = [x.reshape(height // 2, 2, width // 2, 2) for x in chroma]
  planes = [luma, *(x.mean(axis=(1, 3)) for x in blocks)]
  flat = np.concatenate([x.ravel() for x in planes])
  return np.rint(flat).astype(np.uint8).reshape(-1, width)
