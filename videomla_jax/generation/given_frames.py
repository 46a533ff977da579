"""Given first frames: pictures and clips, read and resized for a model."""

from collections.abc import Sequence
import os

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from videomla_jax.generation import mp4

Frames = UInt8[np.ndarray, "t h w c"]


def read_given(
  *, image: str, clip: str, height: int, width: int, channels: int
) -> Frames | None:
  """Reads the given first frames of a video and resizes them.

  Args:
    image: Picture file of the first frame, or an empty string.
    clip: MP4 file of a clip to continue, or an empty string.
    height: Pixel rows of the video.
    width: Pixel columns of the video.
    channels: 1 (grey) or 3 (RGB).

  Returns:
    All frames of the picture or clip; None if neither is named.

  Raises:
    ValueError: If the file cannot be read.
  """
  if image:
    frames = [_read_image(image)]
    return _resize(frames, height=height, width=width, channels=channels)
  if clip:
    return read_clip(clip, height=height, width=width, channels=channels)
  return None


def read_clip(
  path: str | os.PathLike[str], *, height: int, width: int, channels: int
) -> Frames:
  """Reads all frames of an MP4 file and resizes them.

  Args:
    path: The file.
    height: Pixel rows wanted.
    width: Pixel columns wanted.
    channels: 1 (grey) or 3 (RGB).

  Raises:
    ValueError: If the file cannot be read.
  """
  # Frames keep their number: a clip of another rate plays at the model's.
  frames = [Image.fromarray(f) for f in mp4.read_mp4(path)[0]]
  return _resize(frames, height=height, width=width, channels=channels)


def _resize(
  frames: Sequence[Image.Image], *, height: int, width: int, channels: int
) -> Frames:
  """Converts pictures to grey or RGB frames of one size."""
  mode, resample = "RGB", Image.Resampling.LANCZOS
  if channels == 1:  # Drawn pixels stay sharp.
    mode, resample = "L", Image.Resampling.BOX
  resized = [
    np.asarray(f.convert(mode).resize((width, height), resample))
    for f in frames
  ]
  return np.stack(resized).reshape(len(frames), height, width, channels)


def _read_image(path: str) -> Image.Image:
  """Reads a picture of any size as RGB, transparency dropped."""
  try:
    with Image.open(path) as picture:
      return picture.convert("RGB")  # This decodes, so damage shows here.
  except (OSError, SyntaxError) as error:
    raise ValueError(
      f"image={path!r} cannot be read; give a PNG or JPEG file."
    ) from error
