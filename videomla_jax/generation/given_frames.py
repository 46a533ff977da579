"""Given first frames: pictures and clips in the form of a model's frames."""

import dataclasses
import os

from jaxtyping import UInt8
import numpy as np

from videomla_jax import shapes
from videomla_jax.media import changes as changes_lib
from videomla_jax.media import clips
from videomla_jax.media import files
from videomla_jax.media import fitting
from videomla_jax.media import pictures
from videomla_jax.models import window as window_lib

Frames = UInt8[np.ndarray, "t h w c"]

# Bytes of frames that are kept of a clip: 27 s at 480 x 832 and 16 a second.
_MOST_BYTES = 1 << 29


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
  """Frames that a video begins with, and what was done to them.

  Attributes:
    frames: The frames; of a long clip the newest.
    changes: What was changed on the way, in sentences that name the file.
  """

  frames: Frames
  changes: tuple[str, ...]


def read_given(
  *,
  image: str | os.PathLike[str],
  clip: str | os.PathLike[str],
  shape: fitting.FrameShape,
  fps: float | int,
  most: int | None,
) -> Given | None:
  """Reads the given first frames of a video.

  Args:
    image: Picture file of the first frame, or an empty string.
    clip: File of a clip to continue, or an empty string.
    shape: Form of the model's frames.
    fps: Frames per second of the model.
    most: Most frames that are wanted; None is as many as fit into memory.

  Returns:
    The frame of the picture, or the newest frames of the clip; None if neither
    is named.

  Raises:
    ValueError: If the file cannot be read.
  """
  if image:
    return _read_image(image, shape)
  if clip:
    return _read_clip(clip, shape, fps=fps, most=most)
  return None


def read_start(
  path: str | os.PathLike[str],
  *,
  shape: fitting.FrameShape,
  fps: float | int,
  most: int,
) -> Given:
  """Reads the first frames of a clip.

  Args:
    path: The file.
    shape: Form of the frames.
    fps: Frames per second wanted.
    most: Most frames that are read.

  Raises:
    ValueError: If the file cannot be read.
  """
  try:
    with clips.open_video(path) as video:
      part = video.first(shape, fps=fps, most=most)
  except files.Unusable as error:
    raise _refusal("clip", path, error) from error
  return Given(part.frames, _sentences("clip", path, part.changes))


def visible_frames(window: window_lib.Window, *, stride: int) -> int | None:
  """Counts the pixel frames that a chunk sees before itself.

  Args:
    window: What a chunk sees.
    stride: Pixel frames per latent frame.

  Returns:
    The number; None if it sees all of them.
  """
  if window.local_frames is None:
    return None
  seen = window.sink_frames + window.local_frames - window.chunk_frames
  return shapes.pixel_frames(max(seen, 1), stride=stride)


def _read_image(
  path: str | os.PathLike[str], shape: fitting.FrameShape
) -> Given:
  try:
    picture = pictures.read(path, shape)
  except files.Unusable as error:
    raise _refusal("image", path, error) from error
  sentences = _sentences("image", path, picture.changes)
  return Given(picture.frame[None], sentences)


def _read_clip(
  path: str | os.PathLike[str],
  shape: fitting.FrameShape,
  *,
  fps: float | int,
  most: int | None,
) -> Given:
  size = shape.height * shape.width * shape.channels
  fitting_memory = max(1, _MOST_BYTES // size)
  kept = fitting_memory if most is None else min(most, fitting_memory)
  try:
    with clips.open_video(path) as video:
      part = video.last(shape, fps=fps, most=kept)
  except files.Unusable as error:
    raise _refusal("clip", path, error) from error
  if part.total > kept == fitting_memory:
    part.changes.add(
      "part",
      f"only the last {kept} of {part.total} frames used: more do not fit "
      "into memory",
    )
  return Given(part.frames, _sentences("clip", path, part.changes))


def _refusal(
  field: str, path: str | os.PathLike[str], error: files.Unusable
) -> ValueError:
  """Makes one sentence of what is wrong with a file."""
  kinds = {
    "image": "a PNG, JPEG, WebP or GIF file",
    "clip": "an MP4, WebM or other file of video",
  }
  # `repr` shows the control characters of a name and does not send them to the
  # terminal. Files that are named in error have no end.
  name = repr(os.fspath(path))
  shown = name if len(name) <= 300 else f"{name[:150]}...{name[-150:]}"
  # Some reasons name a way out of their own.
  way_out = "" if ";" in str(error) else f"; give {kinds[field]}"
  return ValueError(f"{field}={shown} cannot be read: {error}{way_out}.")


def _sentences(
  field: str, path: str | os.PathLike[str], changes: changes_lib.Changes
) -> tuple[str, ...]:
  name = repr(os.path.basename(os.fspath(path)))
  return tuple(f"{field} {name}: {text}" for text in changes.texts)
