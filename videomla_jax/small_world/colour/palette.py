"""Colours of the colour world, far apart in RGB.

What is drawn is told by its colour, also when a video model has blurred it, so
the colours of digits lie at least 100 levels from each other and from all that
is behind or in front of them (`tests/small_world/colour/palette_test.py`).
"""

from typing import NamedTuple

from jaxtyping import UInt8
import numpy as np

RGB = tuple[int, int, int]

# Of digits: bright and saturated, or white.
COLOURS: dict[str, RGB] = {
  "red": (232, 44, 52),
  "orange": (255, 142, 20),
  "yellow": (255, 234, 64),
  "green": (52, 200, 76),
  "cyan": (52, 220, 232),
  "blue": (64, 104, 255),
  "pink": (255, 96, 204),
  "white": (246, 246, 246),
}


class Shades(NamedTuple):
  """A colour of the background.

  Attributes:
    plain: All over a plain background.
    top: First row of a graded background.
    bottom: Last row of a graded background.
  """

  plain: RGB
  top: RGB
  bottom: RGB


# Dark, so that every digit stands out.
BACKGROUNDS: dict[str, Shades] = {
  "black": Shades((14, 14, 16), (2, 2, 4), (48, 48, 54)),
  "grey": Shades((84, 86, 92), (44, 46, 52), (120, 122, 128)),
  "navy": Shades((22, 32, 84), (10, 14, 44), (40, 58, 124)),
  "brown": Shades((88, 56, 34), (44, 28, 18), (122, 84, 56)),
  "plum": Shades((74, 28, 78), (36, 12, 42), (112, 52, 114)),
  "forest": Shades((20, 70, 50), (8, 34, 26), (36, 94, 66)),
}

WALL: RGB = (178, 162, 136)
MORTAR: RGB = (146, 132, 112)


def colour_table() -> UInt8[np.ndarray, "colours 3"]:
  """Returns the colours of digits, in the order of `COLOURS`."""
  return np.array([*COLOURS.values()], np.uint8)


def background_table(size: int) -> UInt8[np.ndarray, "2 backgrounds rows 3"]:
  """Returns the rows of plain and of graded backgrounds.

  Args:
    size: Number of rows.
  """
  shades = BACKGROUNDS.values()
  share = np.linspace(0, 1, size)[:, None]
  plain = [np.tile(s.plain, (size, 1)) for s in shades]
  graded = [
    (1 - share) * np.array(s.top) + share * np.array(s.bottom) for s in shades
  ]
  return np.rint([plain, graded]).astype(np.uint8)
