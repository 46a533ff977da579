"""All videos of one generation on their way to disk, one MP4 per prompt."""

from collections.abc import Sequence
import contextlib
import pathlib
import re
from types import TracebackType

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from videomla_jax.generation import contact_sheet
from videomla_jax.generation import mp4

# Widths of frames in a sheet: smaller ones are enlarged, larger ones shrunk.
_SMALL, _LARGE = 48, 240


def paths(
  folder: pathlib.Path, prompts: Sequence[str], *, name: str
) -> list[pathlib.Path]:
  """Names one MP4 per prompt in a folder, readable and unique.

  Args:
    folder: Where the videos will lie.
    prompts: One per video; their words become part of the names.
    name: First word of every file name.
  """
  # Prompts may hold anything, such as slashes; 60 letters stay readable.
  slugs = [re.sub(r"[\W_]+", "-", p.lower()).strip("-") for p in prompts]
  return [
    # The number keeps two videos of one prompt apart.
    folder / f"{name}-{i}-{slug[:60]}.mp4"
    for i, slug in enumerate(slugs)
  ]


class VideoFiles:
  """Writes every video as it arrives and keeps the frames of the sheet.

  Use it in a `with` block: files appear under their names only if it ends
  well.
  """

  def __init__(
    self,
    files: Sequence[pathlib.Path],
    *,
    fps: float | int,
    scale: int,
    num_frames: int,
    columns: int = 22,
  ) -> None:
    """Opens one writer per file.

    Args:
      files: One path per video.
      fps: Frames per second.
      scale: Screen pixels per pixel of the video, along one side.
      num_frames: Frames of each video; what is appended beyond is dropped.
      columns: Frames per row of the contact sheet, at most.

    Raises:
      ValueError: If a folder is not writable, or a number is not positive.
    """
    self._stack = contextlib.ExitStack()
    self._writers = [
      self._stack.enter_context(mp4.Mp4Writer(p, fps=fps, scale=scale))
      for p in files
    ]
    self._fps = fps
    self._wanted = {*contact_sheet.chosen_frames(num_frames, columns=columns)}
    self._num_frames, self._written = num_frames, 0
    # Only the sheet's frames stay in memory: a video may be hours long.
    self._kept: list[tuple[int, UInt8[np.ndarray, "V h w c"]]] = []

  def __enter__(self) -> "VideoFiles":
    self._stack.__enter__()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self._stack.__exit__(kind, error, traceback)

  def append(self, frames: UInt8[np.ndarray, "V t h w c"]) -> int:
    """Writes the next frames of every video and returns how many it wrote."""
    frames = frames[:, : self._num_frames - self._written]
    for writer, video in zip(self._writers, frames, strict=True):
      writer.append(video)
    count = frames.shape[1]
    for i in range(count):
      if self._written + i in self._wanted:
        self._kept.append((self._written + i, _thumbnails(frames[:, i])))
    self._written += count
    return count

  def sheet(self, prompts: Sequence[str]) -> Image.Image:
    """Draws the contact sheet of what was written, one row per video."""
    width = self._kept[0][1].shape[2]
    return contact_sheet.draw(
      np.stack([frame for _, frame in self._kept], axis=1),
      prompts,
      fps=self._fps,
      frame_indices=[i for i, _ in self._kept],
      scale=max(1, _SMALL // width),
    )


def _thumbnails(
  frames: UInt8[np.ndarray, "V h w c"],
) -> UInt8[np.ndarray, "V height width c"]:
  """Shrinks large frames by a whole factor, since a sheet shows many."""
  factor = -(-frames.shape[2] // _LARGE)
  if factor == 1:
    return frames
  pictures = [Image.fromarray(f).reduce(factor) for f in frames]
  return np.stack([np.asarray(p) for p in pictures])
