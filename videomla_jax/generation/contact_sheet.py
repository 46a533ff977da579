"""Contact sheets: one row of time-stamped frames per video, as a PNG."""

from collections.abc import Sequence
import os
import pathlib

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageDraw

from videomla_jax.generation import fonts
from videomla_jax.generation import pixels
from videomla_jax.storage import atomic
from videomla_jax.storage import output_folder

_HEAD = 13  # A sheet shows every one of the first frames: four chunks and one.
_MARGIN = 4  # Pixels around the parts of a sheet.
_FONT_SIZE = 12
_LONGEST = 400  # letters of a label


def chosen_frames(num_frames: int, *, columns: int) -> list[int]:
  """Chooses the frames of a sheet: the first 13, then some up to the last.

  Args:
    num_frames: Frames of the video.
    columns: Frames to choose, at most.

  Returns:
    Indices of the frames, ascending; the last ones are evenly spread.
  """
  columns = min(columns, num_frames)
  head = min(_HEAD, columns)
  step = (num_frames - head) / max(columns - head, 1)
  tail = [round(head - 1 + step * (i + 1)) for i in range(columns - head)]
  return list(range(head)) + tail


def draw(
  videos: UInt8[np.ndarray, "V t h w c"],
  labels: Sequence[str],
  *,
  fps: float | int,
  columns: int = 22,
  scale: int = 2,
  frame_indices: Sequence[int] | None = None,
) -> Image.Image:
  """Shows one row of time-stamped frames per video, under its label.

  Args:
    videos: Grey or RGB videos.
    labels: One text per video, such as its prompt.
    fps: Frames per second, for the time stamps.
    columns: Frames per row, at most; `chosen_frames` says which.
    scale: Number of times that every pixel is repeated along each side.
    frame_indices: Position of every given frame in its video, where `videos`
      holds the chosen frames only.

  Returns:
    The picture.

  Raises:
    ValueError: If there is not one label per video, or frames are neither grey
      nor RGB.
  """
  if len(labels) != len(videos) or not labels:
    raise ValueError(
      f"labels has {len(labels)} entries and must have one for each of the"
      f" {len(videos)} videos; give at least one video and its label"
    )
  if frame_indices is None:
    chosen = chosen_frames(videos.shape[1], columns=columns)
    frame_indices = chosen
  else:
    chosen = range(videos.shape[1])
  # Times tell how far into a long video a frame lies.
  stamps = [time_stamp(index / fps) for index in frame_indices]
  rows = [
    _sheet_row(
      [pixels.enlarge(video[i], scale) for i in chosen],
      stamps,
      label,
      number=number,
    )
    for number, (video, label) in enumerate(zip(videos, labels, strict=True))
  ]
  sheet = Image.new(
    "RGB", (rows[0].width, sum(row.height for row in rows)), "white"
  )
  top = 0
  for row in rows:
    sheet.paste(row, (0, top))
    top += row.height
  return sheet


def write_png(path: str | os.PathLike[str], image: Image.Image) -> None:
  """Writes a picture as PNG, complete or not at all.

  Args:
    path: File to write or replace; its folder is created if it is missing.
    image: The picture.

  Raises:
    ValueError: If the folder is not writable.
  """
  path = pathlib.Path(path)
  output_folder.check(path.parent)
  with atomic.replacing(path) as temporary:
    image.save(temporary, format="PNG", optimize=True)


def time_stamp(seconds: float | int) -> str:
  """Writes a time as minutes, seconds and tenths of a second: "0:12.5"."""
  # Rounding comes first: 59.96 s must become 1:00.0 and not 0:60.0.
  tenths = round(seconds * 10)
  return f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"


def _sheet_row(
  cells: list[UInt8[np.ndarray, "h w 3"]],
  stamps: list[str],
  label: str,
  *,
  number: int,
) -> Image.Image:
  """Draws one video: its label, its frames, and the time below each frame."""
  if len(label) > _LONGEST:
    label = f"{label[:_LONGEST]} ..."
  font, drawn = fonts.choose(label, size=_FONT_SIZE)
  if drawn != label:
    # The report has all letters, under the same number.
    drawn = f"{number}: {drawn}"
  small, _ = fonts.choose("0:00.0", size=_FONT_SIZE - 2)
  height, width = cells[0].shape[:2]
  stamp_width = max(round(small.getlength(x)) for x in stamps)
  # A frame may be narrower than the time below it.
  pitch = max(width, stamp_width) + _MARGIN
  # A label needs some room even above a single small frame.
  lines = _wrap(drawn, font, max(pitch * len(cells), 160))
  line_height = _FONT_SIZE + _MARGIN
  top = line_height * len(lines) + _MARGIN
  longest = max(round(font.getlength(x)) for x in lines)
  # The first letter of a line always has its place.
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


def _wrap(text: str, font: fonts.Font, width: int) -> list[str]:
  """Breaks a text into lines of at most `width` pixels, between words at best.

  Chinese has no spaces, and a word may be longer than a line.
  """
  lines = [""]
  for word in text.split():
    longer = f"{lines[-1]} {word}".strip()
    if font.getlength(longer) <= width:
      lines[-1] = longer
      continue
    if lines[-1]:
      lines.append("")
    for letter in word:
      if lines[-1] and font.getlength(lines[-1] + letter) > width:
        lines.append("")
      lines[-1] += letter
  return lines
