"""Uniform motion between two walls, in closed form.

On an axis whose range is 0..R, a point that starts at p0 with velocity v is at

  p(t) = R - |((p0 + v t) mod 2R) - R|,                                  (1)

a triangle wave of period 2R. In whole numbers there is no rounding that could
grow, however long a video is.
"""

from jaxtyping import Array, Int, Num
import numpy as np

Numbers = Num[Array, "..."] | Num[np.ndarray, "..."]


def fold(path: Numbers, reach: float | int | Numbers) -> Numbers:
  """Returns where a point is that bounces between 0 and a reach, Eq. (1).

  Args:
    path: Where the point would be without walls, p0 + v t.
    reach: Largest coordinate R, positive; the unit is that of the path.
  """
  return reach - abs(path % (2 * reach) - reach)


def heading(
  path: Int[Array, "..."], reach: Int[Array, "..."], sense: Int[Array, "..."]
) -> Int[Array, "..."]:
  """Returns the sense of motion, the derivative of `fold` from the right.

  Args:
    path: Where the point would be without walls.
    reach: Largest coordinate R, positive.
    sense: Sense of the path itself, -1, 0 or 1.

  Returns:
    -1, 0 or 1. At a wall it is the sense after the bounce.
  """
  # At a wall the path is a multiple of R, and the half period that it enters
  # depends on its own sense.
  half = (2 * path + sense) // (2 * reach) % 2
  return sense * (1 - 2 * half)
