"""Draws digits at parts of a pixel, exactly.

A digit is given by samples half a pixel apart. Each sample is a point of ink
that a pixel at distance x along an axis takes by the share

  h(x) = max(0, 1 - |x|),                                                (1)

so that the ink and its centroid stay those of the samples wherever the digit
is: h sums to 1 and reproduces straight lines. Positions are whole sixteenths of
a pixel, hence all sums are of whole numbers below 2^24, which float32 holds
exactly, and pixels are mixed in whole numbers too. So no picture depends on the
order in which a device sums.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Int32, UInt8

from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import palette

OPAQUE = 256  # the cover of a pixel that shows nothing but a digit
_FULL = 255 * (2 * motion.UNIT) ** 2  # weight of an area full of ink
_COURSE, _BRICK = 8, 16  # height and width of a brick, pixels


def weights(
  place: Int[Array, "T"],
  first: Int[Array, ""],
  last: Int[Array, ""],
  num_samples: int,
) -> Float32[Array, "T size samples"]:
  """Returns the sixteenths of each sample that each pixel takes, Eq. (1).

  Args:
    place: Middle of the box along one axis, units of 1/16 px.
    first: First sample with ink.
    last: Last sample with ink.
    num_samples: Number of samples.
  """
  unit = motion.UNIT
  pixel = jnp.arange(motion.SIZE) * unit + unit // 2
  sample = (2 * jnp.arange(num_samples) - first - last) * (unit // 4)
  far = abs(pixel[:, None] - (place[:, None, None] + sample))
  return jnp.maximum(unit - far, 0).astype(jnp.float32)


def cover(
  ink: UInt8[Array, "rows columns"],
  first: Int[Array, "2"],
  last: Int[Array, "2"],
  place: Int[Array, "T 2"],
) -> Int32[Array, "T size size"]:
  """Returns how much a digit covers of each pixel, 0..`OPAQUE`.

  Args:
    ink: Samples of a digit.
    first: First column and row with ink.
    last: Last column and row with ink.
    place: Middle (x, y) of the box, units of 1/16 px, inside the frame.
  """
  rows, columns = ink.shape
  down = weights(place[:, 1], first[1], last[1], rows)
  across = weights(place[:, 0], first[0], last[0], columns)
  exact = jax.lax.Precision.HIGHEST  # or a GPU would round to fewer bits
  ink = ink.astype(jnp.float32)
  strips = jnp.einsum("TyR,RC->TyC", down, ink, precision=exact)
  total = jnp.einsum("TyC,TxC->Tyx", strips, across, precision=exact)
  return (total.astype(jnp.int32) * OPAQUE + _FULL // 2) // _FULL


def visible(
  covers: Int32[Array, "T things size size"], wall: Bool[Array, "size"]
) -> Float32[Array, "T things"]:
  """Returns which share of each digit's ink is not covered by anything.

  Args:
    covers: Cover of each digit, the front one first.
    wall: Columns with a wall.
  """
  through = jnp.where(wall, 0, OPAQUE)
  shares = []
  for i in range(covers.shape[1]):
    ink = covers[:, i]
    shown = (ink * through).sum((1, 2))
    total = jnp.maximum(ink.sum((1, 2)), 1) * OPAQUE
    shares.append(shown.astype(jnp.float32) / total.astype(jnp.float32))
    through = through * (OPAQUE - ink) // OPAQUE
  return jnp.stack(shares, 1)


def paint(
  covers: Int32[Array, "T things size size"],
  colours: UInt8[Array, "things 3"],
  background: UInt8[Array, "size 3"],
  wall: Int[Array, "2"],
) -> UInt8[Array, "T size size 3"]:
  """Returns pictures of a background, digits before it and a wall in front.

  Args:
    covers: Cover of each digit, the front one first.
    colours: Colour of each digit.
    background: Colour of each row.
    wall: Left and right edge in pixels; equal if there is none.
  """
  picture = background.astype(jnp.int32)[:, None]
  for i in reversed(range(covers.shape[1])):
    share, colour = covers[:, i, ..., None], colours[i].astype(jnp.int32)
    mixed = picture * (OPAQUE - share) + colour * share
    picture = (mixed + OPAQUE // 2) // OPAQUE
  behind = wall_columns(wall)[:, None]
  return jnp.where(behind, bricks(wall), picture).astype(jnp.uint8)


def wall_columns(wall: Int[Array, "2"]) -> Bool[Array, "size"]:
  """Returns the columns of pixels that a wall covers.

  Args:
    wall: Left and right edge in pixels; equal if there is none.
  """
  column = jnp.arange(motion.SIZE)
  return (column >= wall[0]) & (column < wall[1])


def bricks(wall: Int[Array, "2"]) -> Int32[Array, "size size 3"]:
  """Returns a picture of bricks, laid from the left edge of a wall.

  Args:
    wall: Left and right edge in pixels.
  """
  row = jnp.arange(motion.SIZE)[:, None]
  shift = (row // _COURSE % 2) * (_BRICK // 2)
  column = jnp.arange(motion.SIZE) - wall[0] + shift
  joint = (row % _COURSE == _COURSE - 1) | (column % _BRICK == _BRICK - 1)
  colours = jnp.array([palette.WALL, palette.MORTAR], jnp.int32)
  return colours[joint.astype(jnp.int32)]
