"""Video files and contact sheets: H.264 in MP4 that browsers play, and PNG.

Every file is written under a temporary name and renamed when complete, so a
failure leaves nothing behind and a reader never sees half a file.
"""

import collections.abc
import fractions
import os
import pathlib
import tempfile
import typing

import av
from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PathLike = str | os.PathLike[str]
Frames = UInt8[np.ndarray, "T H W C"]

_CRF = "16"  # Visually lossless; small frames cost little anyway.
_HEAD = 13  # A sheet shows every one of the first frames: four chunks and one.
_MARGIN = 4  # Pixels around the parts of a sheet.
_FONT_SIZE = 12
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


def check_output_folder(path: PathLike) -> pathlib.Path:
  """Creates a folder and proves that files can be written there.

  Args:
    path: Folder for results.

  Returns:
    The folder.

  Raises:
    ValueError: If the folder cannot be created or written to.
  """
  folder = pathlib.Path(path)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise ValueError(
      f"output folder {str(path)!r} cannot be written"
      f" ({error.strerror or error}); choose a folder that you may write to"
    ) from error
  return folder


def to_uint8(
  frames: Float[np.ndarray, "*dims"],
) -> UInt8[np.ndarray, "*dims"]:
  """Rounds values in [0, 1] to 0..255; what lies outside is clipped."""
  clipped = np.clip(np.asarray(frames, np.float32), 0, 1)
  return np.rint(clipped * 255).astype(np.uint8)


class Mp4Writer:
  """Writes an MP4 file chunk by chunk; use it in a `with` block."""

  def __init__(
    self, path: PathLike, *, fps: float | int, scale: int = 1
  ) -> None:
    """Checks the arguments; the size comes from the first frames.

    Args:
      path: File to write, replaced only when the block ends well.
      fps: Frames per second, positive.
      scale: Nearest-neighbour enlargement, at least 1.

    Raises:
      ValueError: If a number is out of range or the folder is not writable.
    """
    if fps <= 0:
      raise ValueError(f"fps={fps} must be positive; give frames per second")
    if scale < 1:
      raise ValueError(f"scale={scale} must be at least 1; use 1 or more")
    self._path = pathlib.Path(path)
    check_output_folder(self._path.parent)
    self._temporary = _temporary_name(self._path)
    self._fps = fractions.Fraction(fps).limit_denominator(1001)
    self._scale = scale
    self._shape: tuple[int, ...] | None = None
    self._container: typing.Any = None
    self._stream: typing.Any = None
    self.num_frames = 0

  def append(self, frames: Frames) -> None:
    """Encodes frames.

    Args:
      frames: Grey (one channel) or RGB frames of one size throughout.

    Raises:
      ValueError: If channels or size do not fit.
    """
    _check_frames(frames)
    if self._shape is None:
      self._open(frames.shape[1:])
    elif frames.shape[1:] != self._shape:
      raise ValueError(
        f"frames of shape {frames.shape[1:]} follow frames of shape"
        f" {self._shape}; give every chunk the same size"
      )
    for frame in frames:
      planes = _to_yuv420(_enlarge(frame, self._scale))
      image = av.VideoFrame.from_ndarray(planes, "yuv420p")
      image.pts = self.num_frames
      image.time_base = 1 / self._fps
      self._container.mux(self._stream.encode(image))
      self.num_frames += 1

  def abort(self) -> None:
    """Drops what was written; an older file at the path stays."""
    if self._container is not None:
      self._container.close()
      self._container = None
    self._temporary.unlink(missing_ok=True)

  def close(self) -> None:
    """Completes the file and puts it in place.

    Raises:
      ValueError: If no frame was appended.
    """
    if self.num_frames == 0:
      self.abort()
      raise ValueError(
        f"video {str(self._path)!r} has no frames; append at least one"
      )
    try:
      self._container.mux(self._stream.encode(None))
      self._container.close()
      self._container = None
      self._temporary.replace(self._path)
    except BaseException:
      self.abort()
      raise

  def __enter__(self) -> "Mp4Writer":
    """Returns itself."""
    return self

  def __exit__(self, kind: object, *unused: object) -> None:
    """Completes the file, or drops it if the block failed."""
    if kind is None:
      self.close()
    else:
      self.abort()

  def _open(self, shape: tuple[int, ...]) -> None:
    """Opens the container and the encoder."""
    # The index goes first (faststart), so playing starts while loading.
    self._container = av.open(
      str(self._temporary), "w", options={"movflags": "+faststart"}
    )
    stream: typing.Any = self._container.add_stream("libx264", rate=self._fps)
    # 4:2:0 stores colour for 2x2 blocks: sides are padded to even.
    stream.height, stream.width = (_even(x * self._scale) for x in shape[:2])
    stream.pix_fmt = "yuv420p"
    stream.codec_context.colorspace = _BT601_TAG
    # A key frame every two seconds, so that seeking is exact enough.
    gop = str(max(1, round(2 * self._fps)))
    stream.options = {
      "crf": _CRF,
      "preset": "medium",
      "g": gop,
      # Its vector code reads memory beyond small frames: equal videos gave
      # unequal files, about one in three.
      "x264-params": "no-mbtree=1",
    }
    self._stream, self._shape = stream, tuple(shape)


def write_mp4(
  path: PathLike,
  frames: Frames | collections.abc.Iterable[Frames],
  *,
  fps: float | int,
  scale: int = 1,
) -> int:
  """Writes frames, or chunks of frames as they come, as an MP4 file.

  Args:
    path: File to write.
    frames: Grey or RGB frames, or an iterable of such arrays.
    fps: Frames per second.
    scale: Nearest-neighbour enlargement.

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
) -> tuple[UInt8[np.ndarray, "T H W 3"], float]:
  """Decodes all frames of a video file.

  Returns:
    RGB frames and the frames per second.

  Raises:
    ValueError: If the file is missing or no video.
  """
  try:
    with av.open(str(path)) as container:
      stream = container.streams.video[0]
      frames = [x.to_ndarray(format="rgb24") for x in container.decode(stream)]
      rate = stream.average_rate
  except (av.error.FFmpegError, OSError, IndexError) as error:
    raise ValueError(
      f"video {str(path)!r} cannot be read ({error}); give an MP4 file"
    ) from error
  if not frames or rate is None:
    raise ValueError(f"video {str(path)!r} holds no frames; write it again")
  return np.stack(frames), float(rate)


def sheet_frames(num_frames: int, *, columns: int) -> list[int]:
  """Chooses a sheet's frames: the first 13, then spread to the last one."""
  columns = min(columns, num_frames)
  head = min(_HEAD, columns)
  step = (num_frames - head) / max(columns - head, 1)
  tail = [round(head - 1 + step * (i + 1)) for i in range(columns - head)]
  return list(range(head)) + tail


def contact_sheet(
  videos: UInt8[np.ndarray, "V T H W C"],
  labels: collections.abc.Sequence[str],
  *,
  fps: float | int,
  columns: int = 22,
  scale: int = 2,
  frame_indices: collections.abc.Sequence[int] | None = None,
) -> Image.Image:
  """Shows one row of time-stamped frames per video, under its label.

  Args:
    videos: Grey or RGB videos.
    labels: One text per video, such as its prompt.
    fps: Frames per second, for the time stamps.
    columns: Frames per row, at most; see `sheet_frames`.
    scale: Nearest-neighbour enlargement.
    frame_indices: Frame numbers if `videos` holds only the chosen frames.

  Returns:
    The picture.

  Raises:
    ValueError: If the labels are not one per video, or channels do not fit.
  """
  if len(labels) != len(videos) or not labels:
    raise ValueError(
      f"labels has {len(labels)} entries and must have one for each of the"
      f" {len(videos)} videos; give at least one video and its label"
    )
  if frame_indices is None:
    chosen = sheet_frames(videos.shape[1], columns=columns)
    frame_indices = chosen
  else:
    chosen = range(videos.shape[1])
  stamps = [time_stamp(index / fps) for index in frame_indices]
  rows = [
    _sheet_row([_enlarge(video[i], scale) for i in chosen], stamps, label)
    for video, label in zip(videos, labels, strict=True)
  ]
  sheet = Image.new(
    "RGB", (rows[0].width, sum(row.height for row in rows)), "white"
  )
  top = 0
  for row in rows:
    sheet.paste(row, (0, top))
    top += row.height
  return sheet


def write_png(path: PathLike, image: Image.Image) -> None:
  """Writes a picture as PNG, complete or not at all.

  Raises:
    ValueError: If the folder is not writable.
  """
  path = pathlib.Path(path)
  check_output_folder(path.parent)
  temporary = _temporary_name(path)
  try:
    image.save(temporary, format="PNG", optimize=True)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def time_stamp(seconds: float | int) -> str:
  """Words a time as minutes, seconds and tenths: "0:12.5"."""
  tenths = round(seconds * 10)
  return f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"


def _sheet_row(
  cells: list[np.ndarray], stamps: list[str], label: str
) -> Image.Image:
  """Draws one video: its label, its frames, and their times."""
  font = ImageFont.load_default(size=_FONT_SIZE)
  small = ImageFont.load_default(size=_FONT_SIZE - 2)
  height, width = cells[0].shape[:2]
  stamp_width = max(round(small.getlength(x)) for x in stamps)
  pitch = max(width, stamp_width) + _MARGIN
  lines = _wrap(label, font, max(pitch * len(cells), 160))
  line_height = _FONT_SIZE + _MARGIN
  top = line_height * len(lines) + _MARGIN
  longest = max(round(font.getlength(x)) for x in lines)
  row_width = max(pitch * len(cells), longest) + 2 * _MARGIN
  size = (row_width, top + height + line_height + _MARGIN)
  row = Image.new("RGB", size, "white")
  draw = ImageDraw.Draw(row)
  for i, line in enumerate(lines):
    draw.text((_MARGIN, i * line_height + 2), line, fill="black", font=font)
  for i, (cell, stamp) in enumerate(zip(cells, stamps, strict=True)):
    left = _MARGIN + i * pitch
    row.paste(Image.fromarray(cell), (left, top))
    draw.text((left, top + height + 1), stamp, fill="dimgray", font=small)
  return row


def _wrap(text: str, font: typing.Any, width: int) -> list[str]:
  """Breaks a text into lines of at most `width` pixels, between words."""
  lines = [""]
  for word in text.split():
    longer = f"{lines[-1]} {word}".strip()
    if font.getlength(longer) <= width or not lines[-1]:
      lines[-1] = longer
    else:
      lines.append(word)
  return lines


def _enlarge(
  frame: UInt8[np.ndarray, "H W C"], scale: int
) -> UInt8[np.ndarray, "height width 3"]:
  """Repeats pixels, makes both sides even, and turns grey into RGB."""
  _check_frames(frame[None])
  large = frame.repeat(scale, axis=0).repeat(scale, axis=1)
  height, width, channels = large.shape
  pad = ((0, _even(height) - height), (0, _even(width) - width), (0, 0))
  large = np.pad(large, pad, mode="edge")
  return np.repeat(large, 3 // channels, axis=-1)


def _to_yuv420(
  frame: UInt8[np.ndarray, "H W 3"],
) -> UInt8[np.ndarray, "rows W"]:
  """Converts to luma, then both chroma planes at half size, one below another.

  ITU-R BT.601, limited range. The codec library's own conversion reads beyond
  rows of small frames, so that equal videos gave unequal files.
  """
  height, width, _ = frame.shape
  luma, *chroma = np.moveaxis(frame @ _BT601.T + _BT601_OFFSET, -1, 0)
  blocks = [x.reshape(height // 2, 2, width // 2, 2) for x in chroma]
  planes = [luma, *(x.mean(axis=(1, 3)) for x in blocks)]
  flat = np.concatenate([x.ravel() for x in planes])
  return np.rint(flat).astype(np.uint8).reshape(-1, width)


def _check_frames(frames: Frames) -> None:
  """Raises unless frames are grey or RGB and not empty."""
  if frames.shape[-1] not in (1, 3) or 0 in frames.shape[1:]:
    raise ValueError(
      f"frames of shape {frames.shape} must be [T, H, W, 1] or [T, H, W, 3];"
      " move the channels to the end"
    )


def _even(size: int) -> int:
  """Rounds up to an even number."""
  return size + size % 2


def _temporary_name(path: pathlib.Path) -> pathlib.Path:
  """Names the unfinished file, in the same folder so that renaming works."""
  return path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
