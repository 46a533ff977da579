"""Frames in and out of files: given frames, MP4s side by side, their sheet."""

import contextlib
import pathlib
import re
from typing import Any

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from videomla_jax.generation import mp4

# Widths of pictures in a sheet: smaller ones are enlarged, larger ones shrunk.
_SMALL, _LARGE = 48, 240


def read_given(
  config: Any, *, height: int, width: int, channels: int
) -> UInt8[np.ndarray, "T h w c"] | None:
  """Given first frames from `config.image` or `config.clip`, resized.

  Args:
    config: Holds both file names; at most one is not empty.
    height: Pixel rows of the video.
    width: Pixel columns.
    channels: 1 (grey) or 3.

  Raises:
    ValueError: If both are given or the file cannot be read.
  """
  if config.image and config.clip:
    raise ValueError("image and clip are both given; choose one.")
  size = dict(height=height, width=width, channels=channels)
  if config.image:
    return _resize([_read_image(config.image)], **size)
  return read_clip(config.clip, **size) if config.clip else None


def read_clip(
  path: str, *, height: int, width: int, channels: int
) -> UInt8[np.ndarray, "T h w c"]:
  """Frames of an MP4, resized.

  Raises:
    ValueError: If the file cannot be read.
  """
  frames = [Image.fromarray(f) for f in mp4.read_mp4(path)[0]]
  return _resize(frames, height=height, width=width, channels=channels)


def _resize(
  frames: list[Image.Image], *, height: int, width: int, channels: int
) -> UInt8[np.ndarray, "T h w c"]:
  mode, resample = "RGB", Image.Resampling.LANCZOS
  if channels == 1:  # Drawn pixels stay sharp.
    mode, resample = "L", Image.Resampling.BOX
  resized = [
    np.asarray(f.convert(mode).resize((width, height), resample))
    for f in frames
  ]
  return np.stack(resized).reshape(len(frames), height, width, channels)


def _read_image(path: str) -> Image.Image:
  try:
    with Image.open(path) as picture:
      return picture.convert("RGB")  # decodes, so damage shows here
  except (OSError, SyntaxError) as error:
    raise ValueError(
      f"image={path!r} cannot be read; give a PNG or JPEG file."
    ) from error


def paths(config: Any, prompts: list[str]) -> list[pathlib.Path]:
  """One MP4 name per prompt in `config.folder`, readable and unique."""
  folder = pathlib.Path(config.folder)
  slugs = [re.sub(r"[\W_]+", "-", p.lower()).strip("-") for p in prompts]
  return [
    folder / f"{config.name}-{i}-{slug[:60]}.mp4"
    for i, slug in enumerate(slugs)
  ]


class Films:
  """Writes every video as it arrives and keeps the frames of the sheet."""

  def __init__(
    self,
    files: list[pathlib.Path],
    *,
    fps: float | int,
    scale: int,
    num_frames: int,
    columns: int = 22,
  ):
    """Opens one writer per file.

    Args:
      files: One per video.
      fps: Frames per second.
      scale: Screen pixels per pixel.
      num_frames: Length; frames beyond it are dropped.
      columns: Pictures per row of the sheet.
    """
    self._stack = contextlib.ExitStack()
    self._writers = [
      self._stack.enter_context(mp4.Mp4Writer(p, fps=fps, scale=scale))
      for p in files
    ]
    self._fps = fps
    self._wanted = set(mp4.sheet_frames(num_frames, columns=columns))
    self._left, self._index = num_frames, 0
    self._kept: list[tuple[int, np.ndarray]] = []

  def __enter__(self):
    self._stack.__enter__()
    return self

  def __exit__(self, *error):
    return self._stack.__exit__(*error)

  def append(self, frames: UInt8[np.ndarray, "B T h w c"]) -> int:
    """Writes frames up to the video's length; returns how many."""
    frames = frames[:, : self._left]
    for writer, film in zip(self._writers, frames, strict=True):
      writer.append(film)
    for i in range(frames.shape[1]):
      if self._index + i in self._wanted:
        self._kept.append((self._index + i, _thumbnails(frames[:, i])))
    self._left -= frames.shape[1]
    self._index += frames.shape[1]
    return frames.shape[1]

  def sheet(self, prompts: list[str]) -> Image.Image:
    """The contact sheet of what was written: one row per video."""
    width = self._kept[0][1].shape[2]
    return mp4.contact_sheet(
      np.stack([frame for _, frame in self._kept], axis=1),
      prompts,
      fps=self._fps,
      frame_indices=[i for i, _ in self._kept],
      scale=max(1, _SMALL // width),
    )


def _thumbnails(
  frames: UInt8[np.ndarray, "B h w c"],
) -> UInt8[np.ndarray, "B H W c"]:
  """Shrinks large frames by a whole factor: a sheet shows many."""
  factor = -(-frames.shape[2] // _LARGE)
  if factor == 1:
    return frames
  pictures = [Image.fromarray(f).reduce(factor) for f in frames]
  return np.stack([np.asarray(p) for p in pictures])
