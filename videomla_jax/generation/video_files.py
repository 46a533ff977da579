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
from videomla_jax.runtime import signals

_MAX_BYTES = 255  # of a file name on most disks
# Widths of frames in a sheet: smaller ones are enlarged, larger ones shrunk.
_SMALL, _LARGE = 48, 240


def paths(
  folder: pathlib.Path,
  prompts: Sequence[str],
  *,
  name: str,
  seeds: Sequence[int] | None = None,
) -> list[pathlib.Path]:
  """Names one MP4 per prompt in a folder, readable and unique.

  Args:
    folder: Where the videos will lie.
    prompts: One per video; their words become part of the names.
    name: First word of every file name.
    seeds: Seed of each video, which is part of the name if the first one is not
      0: another seed does not replace a video. None names none.
  """
  named = seeds is not None and seeds[0] != 0
  files = []
  for i, prompt in enumerate(prompts):
    # Prompts may hold anything, such as slashes; 60 letters stay readable.
    slug = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")[:60].strip("-")
    # The number keeps two videos of one prompt apart.
    head = f"{name}-{i}"
    tail = (f"-seed{seeds[i]}" if seeds is not None and named else "") + ".mp4"
    room = _MAX_BYTES - len(f"{head}-{tail}".encode())
    # Disks count bytes; half a letter at the end is dropped.
    slug = slug.encode()[: max(0, room)].decode(errors="ignore")
    files.append(folder / f"{head}-{slug}{tail}")
  return files


class VideoFiles:
  """Writes every video as it arrives and keeps the frames of the sheet.

  Attributes:
    num_frames: Frames of each video that were written.

  Use it in a `with` block: files appear under their names if it ends well, and
  with the frames so far if somebody interrupts it.
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
    self._writers = [mp4.Mp4Writer(p, fps=fps, scale=scale) for p in files]
    self._fps = fps
    self._wanted = {*contact_sheet.chosen_frames(num_frames, columns=columns)}
    self._wanted_frames, self.num_frames = num_frames, 0
    # Only the sheet's frames stay in memory: a video may be hours long.
    self._kept: list[tuple[int, UInt8[np.ndarray, "V h w c"]]] = []

  def __enter__(self) -> "VideoFiles":
    for writer in self._writers:
      self._stack.enter_context(writer)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    # A person, or a scheduler, who stops a long video keeps what is there.
    if isinstance(error, KeyboardInterrupt) and self.num_frames:
      self._stack.close()
    else:
      self._stack.__exit__(kind, error, traceback)

  def append(self, frames: UInt8[np.ndarray, "V t h w c"]) -> int:
    """Writes the next frames of every video and returns how many it wrote.

    Args:
      frames: Frames of all videos.

    Raises:
      signals.Interrupted: If somebody asked to stop; all videos have the same
        frames then.
    """
    with signals.held():
      return self._append(frames)

  def _append(self, frames: UInt8[np.ndarray, "V t h w c"]) -> int:
    frames = frames[:, : self._wanted_frames - self.num_frames]
    for writer, video in zip(self._writers, frames, strict=True):
      writer.append(video)
    count = frames.shape[1]
    for i in range(count):
      if self.num_frames + i in self._wanted:
        self._kept.append((self.num_frames + i, _thumbnails(frames[:, i])))
    self.num_frames += count
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
