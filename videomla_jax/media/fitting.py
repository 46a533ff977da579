"""The one rule by which pictures of any size become frames of a model.

A picture is scaled until it covers the frame, and what stands over is cut off
evenly on both sides. Nothing is squashed. Training data, first frames and clips
to continue all take this way, so a model is used as it was trained.
"""

import dataclasses

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from videomla_jax.media import changes as changes_lib

# Transparent pixels show this, as they do in most viewers.
BACKGROUND = "white"

Frame = UInt8[np.ndarray, "h w c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameShape:
  """The form to which every picture is brought.

  Attributes:
    height: Pixel rows.
    width: Pixel columns.
    channels: 1 (grey) or 3 (RGB).
  """

  height: int
  width: int
  channels: int = 3

  def __post_init__(self) -> None:
    if min(self.height, self.width) < 1 or self.channels not in (1, 3):
      raise ValueError(
        f"frames of {self.height} x {self.width} pixels and {self.channels} "
        "channels cannot be; use 1 or more pixels and 1 or 3 channels."
      )


def fit(
  picture: Image.Image, shape: FrameShape, *, aspect: float = 1.0
) -> Image.Image:
  """Scales a picture until it covers a frame, and cuts it to the centre.

  Args:
    picture: Any mode with 8 bits that has no palette.
    shape: Size of the frame; its channels are left to `to_frame`.
    aspect: Width of a pixel over its height.

  Returns:
    A picture of that size in the same mode.
  """
  left, top = _cut_off(picture.size, shape, aspect=aspect)
  # The crop has fractions of a pixel, so it is left to `resize`: whole pixels
  # would move the picture off its centre.
  box = (left, top, picture.width - left, picture.height - top)
  # Drawn pixels of grey models stay sharp.
  grey = shape.channels == 1
  resample = Image.Resampling.BOX if grey else Image.Resampling.LANCZOS
  return picture.resize((shape.width, shape.height), resample, box=box)


def hides(picture: Image.Image) -> bool:
  """Says whether any pixel is transparent.

  Args:
    picture: RGBA.
  """
  return picture.getchannel("A").tobytes().count(255) < (
    picture.width * picture.height
  )


def to_frame(picture: Image.Image, shape: FrameShape) -> Frame:
  """Lays a picture on the background and makes it grey or RGB.

  Args:
    picture: RGB or RGBA of the size of a frame.
    shape: Gives the channels.
  """
  if picture.mode == "RGBA":
    background = Image.new("RGBA", picture.size, BACKGROUND)
    picture = Image.alpha_composite(background, picture)
  mode = "L" if shape.channels == 1 else "RGB"
  pixels = np.asarray(picture.convert(mode))
  return pixels.reshape(shape.height, shape.width, shape.channels)


def describe(
  size: tuple[int, int],
  shape: FrameShape,
  changes: changes_lib.Changes,
  *,
  aspect: float = 1.0,
) -> None:
  """Notes what `fit` does to pictures of a size.

  Args:
    size: Columns and rows, upright.
    shape: Size of the frame.
    changes: Takes the notes.
    aspect: Width of a pixel over its height.
  """
  width, height = size
  left, top = _cut_off(size, shape, aspect=aspect)
  if abs(aspect - 1) > 1e-3:
    changes.add(
      "pixel aspect", f"pixels {aspect:.3g} times as wide as high made square"
    )
  if max(left, top) >= 0.5:
    kept = f"{round(width - 2 * left)} x {round(height - 2 * top)}"
    changes.add("cut", f"cut to the middle {kept} of {width} x {height} pixels")
  if (width, height) != (shape.width, shape.height):
    changes.add(
      "scaled",
      f"scaled from {width} x {height} to {shape.width} x {shape.height}"
      " pixels (columns x rows)",
    )


def _cut_off(
  size: tuple[int, int], shape: FrameShape, *, aspect: float
) -> tuple[float, float]:
  """Returns how many columns and rows are cut off at each side."""
  columns, rows = size
  width = columns * aspect
  scale = max(shape.width / width, shape.height / rows)
  # These shares of the picture are kept along each side.
  kept_width = min(shape.width / (width * scale), 1.0)
  kept_height = min(shape.height / (rows * scale), 1.0)
  return columns * (1 - kept_width) / 2, rows * (1 - kept_height) / 2
