"""Motion in the colour world, in whole sixteenths of a pixel.

A frame lasts 1/16 s, so a speed of k px/s moves a digit by k sixteenths of a
pixel per frame: every position of every frame is a whole number of them, and
no rounding can grow over a minute.

A wall is a band of pixels over the whole height. A digit whose box is d wide
and whose speed across is v is behind a wall of width w for

  (w - d) / v         if it passes through, with room on both sides,     (1)
  2 (w - d) / v       if the wall reaches the edge and it comes back.    (2)
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32

from videomla_jax.small_world import bounce

SIZE = 64  # pixels, height and width of a frame
FPS = 16
UNIT = 16  # parts of a pixel; positions are whole numbers of them
PX_PER_SECOND = (10, 20)  # of the words "slow" and "fast", on each moving axis
# Frames that a digit is behind the wall at a time: 0.5 to 4 s. A run of whole
# frames is up to one frame longer than the time of Eq. (1) or (2).
FEWEST_HIDDEN, MOST_HIDDEN = 8, 64

LEFT, MIDDLE, RIGHT = 1, 2, 3  # numbers of `prompts.WALLS`, 0 is no wall
_EDGE = SIZE * UNIT
_ROOM = 4 * UNIT  # least way to go in front of a wall at the side
_GAP = UNIT  # least space beside a digit, on each side of a wall in the middle
_FIRST_WAY = 8  # frames before the first bounce, if there is room
_OFF_CENTRE = 8  # pixels that a wall in the middle may be off it


class Course(NamedTuple):
  """How the digits of one clip move, in units of 1/16 px and frames.

  Attributes:
    start: Middle (x, y) of each digit's box in frame 0.
    velocity: Units per frame, 0 on a resting axis.
    half: Half the width and height of each digit's box.
    wall: Left and right edge of the wall in pixels; equal if there is none.
  """

  start: Int[Array, "things 2"]
  velocity: Int[Array, "things 2"]
  half: Int[Array, "things 2"]
  wall: Int[Array, "2"]


class Path(NamedTuple):
  """Where digits are, and how they move on.

  Attributes:
    place: Middle (x, y) of each box, units of 1/16 px.
    velocity: Units per frame at that moment; at an edge, after the bounce.
    hidden: Whether the whole box is behind the wall.
  """

  place: Int32[Array, "T things 2"]
  velocity: Int32[Array, "T things 2"]
  hidden: Bool[Array, "T things"]


def follow(course: Course, num_frames: int) -> Path:
  """Returns the path of every digit, by Eq. (1) of `bounce`.

  Args:
    course: Starts, velocities, sizes and the wall.
    num_frames: Frames, at least 1.
  """
  reach = _EDGE - 2 * course.half
  time = jnp.arange(num_frames, dtype=jnp.int32)[:, None, None]
  straight = course.start - course.half + course.velocity * time
  place = bounce.fold(straight, reach) + course.half
  sense = bounce.heading(straight, reach, jnp.sign(course.velocity))
  left, right = course.wall * UNIT
  x, half = place[..., 0], course.half[:, 0]
  hidden = (x - half >= left) & (x + half <= right) & (left < right)
  return Path(place, sense * abs(course.velocity), hidden)


def wall_widths(
  half: Int[Array, "things"], speed: Int[Array, "things"], kind: Int[Array, ""]
) -> tuple[Int[Array, ""], Int[Array, ""]]:
  """Returns the least and the greatest width of a wall for some digits.

  Within them every digit is behind the wall for 8 to 64 frames whenever it
  passes, and can be seen whole beside it.

  Args:
    half: Half widths, units of 1/16 px.
    speed: Speed across, units per frame, positive.
    kind: `LEFT`, `MIDDLE` or `RIGHT`.

  Returns:
    Widths in pixels.
  """
  width, middle = 2 * half, kind == MIDDLE
  # Eq. (1) takes a whole way w - d for what Eq. (2) takes half of one.
  least = jnp.where(middle, FEWEST_HIDDEN, FEWEST_HIDDEN // 2) * speed
  most = jnp.where(middle, MOST_HIDDEN - 1, (MOST_HIDDEN - 1) // 2) * speed
  widest = width.max()
  room = jnp.where(
    middle, _EDGE - 2 * UNIT * _gap(widest), _EDGE - widest - _ROOM
  )
  low, high = (width + least).max(), jnp.minimum((width + most).min(), room)
  return -(-low // UNIT), high // UNIT


def wall_left(
  width: Int[Array, ""], widest: Int[Array, ""], kind: Int[Array, ""]
) -> tuple[Int[Array, ""], Int[Array, ""]]:
  """Returns the least and the greatest left edge of a wall, in pixels.

  Args:
    width: Width of the wall in pixels.
    widest: Width of the widest digit, units of 1/16 px.
    kind: `LEFT`, `MIDDLE` or `RIGHT`.
  """
  gap, centred = _gap(widest), (SIZE - width) // 2
  at_side = jnp.where(kind == LEFT, 0, SIZE - width)
  low = jnp.maximum(gap, centred - _OFF_CENTRE)
  high = jnp.minimum(SIZE - width - gap, centred + _OFF_CENTRE)
  middle = kind == MIDDLE
  return jnp.where(middle, low, at_side), jnp.where(middle, high, at_side)


def open_space(
  half: Int[Array, "things 2"],
  velocity: Int[Array, "things 2"],
  wall: Int[Array, "2"],
  *,
  on_right: Bool[Array, "things"],
) -> tuple[Int[Array, "things 2"], Int[Array, "things 2"]]:
  """Returns the least and the greatest place at which digits may start.

  A digit is seen whole there, and moves for half a second before it bounces off
  an edge, where there is room for that.

  Args:
    half: Half sizes, units of 1/16 px.
    velocity: Velocities, units per frame.
    wall: Left and right edge in pixels; equal if there is none.
    on_right: Whether a digit is to the right of the wall; without a wall it
      does not matter.

  Returns:
    Places of the middle (x, y), units of 1/16 px.
  """
  low, high = half, _EDGE - half
  x, there = half[:, 0], wall[0] < wall[1]
  low_x = jnp.where(there & on_right, wall[1] * UNIT + x, low[:, 0])
  high_x = jnp.where(there & ~on_right, wall[0] * UNIT - x, high[:, 0])
  low, high = low.at[:, 0].set(low_x), high.at[:, 0].set(high_x)
  way = _FIRST_WAY * velocity
  first = jnp.minimum(jnp.maximum(low, half - way), high)
  last = jnp.maximum(jnp.minimum(high, _EDGE - half - way), low)
  return first, last


def _gap(widest: Int[Array, ""]) -> Int[Array, ""]:
  """Returns the least pixels on either side of a wall in the middle."""
  return -(-(widest + _GAP) // UNIT)
