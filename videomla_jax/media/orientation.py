"""Which way up a picture is: orientations of EXIF and matrices of clips.

Cameras store what the sensor saw, and beside it how to turn or mirror it. Both
ways of saying so name one of the eight symmetries of a rectangle.
"""

from collections.abc import Sequence
import math

from PIL import Image

Turn = Image.Transpose | None

# EXIF 2.32, tag 0x0112, and what makes the picture upright.
_EXIF: dict[int, Turn] = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# By whether rows become columns, whether the new x runs backwards, and y.
_SYMMETRIES: dict[tuple[bool, bool, bool], Turn] = {
  (False, False, False): None,
  (False, True, False): Image.Transpose.FLIP_LEFT_RIGHT,
  (False, False, True): Image.Transpose.FLIP_TOP_BOTTOM,
  (False, True, True): Image.Transpose.ROTATE_180,
  (True, False, False): Image.Transpose.TRANSPOSE,
  (True, True, False): Image.Transpose.ROTATE_270,
  (True, False, True): Image.Transpose.ROTATE_90,
  (True, True, True): Image.Transpose.TRANSVERSE,
}
_WORDS = {
  Image.Transpose.FLIP_LEFT_RIGHT: "mirrored",
  Image.Transpose.FLIP_TOP_BOTTOM: "turned upside down and mirrored",
  Image.Transpose.ROTATE_90: "turned 90 degrees to the left",
  Image.Transpose.ROTATE_180: "turned by 180 degrees",
  Image.Transpose.ROTATE_270: "turned 90 degrees to the right",
  Image.Transpose.TRANSPOSE: "mirrored along its diagonal",
  Image.Transpose.TRANSVERSE: "mirrored along its other diagonal",
}


def from_exif(value: object) -> Turn:
  """Returns what makes a picture upright; None is nothing, or not known.

  Args:
    value: What the EXIF tag "orientation" holds, of any type.
  """
  return _EXIF.get(value) if isinstance(value, int) else None


def from_matrix(matrix: Sequence[int]) -> Turn:
  """Returns the symmetry that is next to a display matrix.

  The matrix (ISO 14496-12, `tkhd`) takes x, y to a x + c y, b x + d y. Turns by
  other angles, which no camera writes, become the nearest of the eight.

  Args:
    matrix: Its nine numbers, row by row: a, b, u, c, d, v, x, y, w.
  """
  a, b, _, c, d = matrix[:5]
  if not a * d - b * c:  # It maps the picture to a line.
    return None
  swapped = math.hypot(b, c) > math.hypot(a, d)
  across, down = (c, b) if swapped else (a, d)
  return _SYMMETRIES[swapped, across < 0, down < 0]


def swaps_sides(turn: Turn) -> bool:
  """Says whether rows become columns.

  Args:
    turn: A symmetry.
  """
  return turn in (
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
  )


def words(turn: Image.Transpose) -> str:
  """Says what was done to make a picture upright.

  Args:
    turn: A symmetry other than doing nothing.
  """
  return _WORDS[turn]
