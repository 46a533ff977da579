"""What can be seen in frames of the colour world, frame by frame.

Nothing here is trained: all colours are known. A pixel p before a background b
that a digit of colour c covers by the share a is

  p = b + a (c - b),                                                     (1)

so a is the projection of p - b on c - b, and what is left over tells colours
apart. Colours without a core of well covered pixels are left out before the
edges of the others are divided among them; the edge of a digit is a mixture
that is near to many colours.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Num, UInt8
import numpy as np

from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import palette

CROP = (24, 20)  # height and width of the crop around a digit, pixels
MIN_INK = 20.0  # pixels covered; whole handwriting has 55 to 130
EDGE_COVER = 0.25  # less is left out: noise, which would pull the centroid

_BLOCK = 32  # frames that are looked at together
_WINDOW = (25, 19)  # odd, and holds any digit with a blurred edge
_CORE_COVER, _MIN_CORE = 0.5, 8  # pixels covered so much make a colour present
_FARTHEST = 70.0  # levels in RGB from the line of Eq. (1)
_WALL_DISTANCE = 36.0  # mean levels of a column from the colours of bricks
_MIN_WALL = 6  # pixels; walls are 9 and more wide
_ODD = 80.0  # levels; what is farther from a background is no background


class Observed(NamedTuple):
  """What is seen in every frame, for every colour of `palette.COLOURS`.

  Coordinates are (x, y) in pixels, as in `world.Truth`.

  Attributes:
    ink: Pixels that the densest digit of a colour covers, 0 if there is none.
    extra: Pixels that more of this colour covers elsewhere.
    centre: Centroid of the densest digit; NaN without ink.
    box: Left, upper, right and lower edge of its pixels; NaN without ink.
    touched: Whether another digit touches it or covers a part of it.
    crop: Its cover, 0..255, with the centroid in the middle.
    wall: Left and right edge of the wall, both 0 if there is none.
    background: Number of the likeliest background; graded ones come last.
    error: Mean difference of rows from each background, levels, where there is
      nothing else.
  """

  ink: Float32[np.ndarray, "V T colours"]
  extra: Float32[np.ndarray, "V T colours"]
  centre: Float32[np.ndarray, "V T colours 2"]
  box: Float32[np.ndarray, "V T colours 4"]
  touched: Bool[np.ndarray, "V T colours"]
  crop: UInt8[np.ndarray, "V T colours height width"]
  wall: Float32[np.ndarray, "V T 2"]
  background: Int32[np.ndarray, "V T"]
  error: Float32[np.ndarray, "V T backgrounds"]


def observe(videos: Num[np.ndarray, "V T 64 64 3"]) -> Observed:
  """Looks at every frame on its own.

  Args:
    videos: Pixels, 0..255 whole or 0..1 as fractions.
  """
  num_videos, num_frames = videos.shape[:2]
  frames = videos.reshape(-1, *videos.shape[2:])
  total = len(frames)
  parts = []
  for i in range(0, total, _BLOCK):
    block = frames[i : i + _BLOCK]
    # The last block is shorter, and another shape would compile anew.
    block = np.pad(block, [(0, _BLOCK - len(block))] + [(0, 0)] * 3)
    parts.append(jax.device_get(_observe(jax.device_put(block))))
  fields = (np.concatenate(part)[:total] for part in zip(*parts, strict=True))
  return Observed(
    *(
      field.reshape(num_videos, num_frames, *field.shape[1:])
      for field in fields
    )
  )


def cut(cover: Num[Array, "height width"], centre: Num[Array, "2"]) -> Array:
  """Returns the crop whose middle is the pixel nearest to a point (x, y).

  Args:
    cover: Share of each pixel that is covered.
    centre: Point in pixels.
  """
  height, width = CROP
  padded = jnp.pad(cover, ((height // 2,) * 2, (width // 2,) * 2))
  corner = jnp.rint(centre).astype(jnp.int32)
  return jax.lax.dynamic_slice(padded, (corner[1], corner[0]), CROP)


@jax.jit
def _observe(
  frames: Num[Array, "n 64 64 3"],
) -> tuple[Array, ...]:
  """Returns the fields of `Observed` for some frames."""
  pixels = frames.astype(jnp.float32)
  if jnp.issubdtype(frames.dtype, jnp.floating):
    pixels = pixels * 255
  return jax.vmap(_observe_frame)(pixels)


def _observe_frame(pixels: Float[Array, "64 64 3"]) -> tuple[Array, ...]:
  wall, column = _find_wall(pixels)
  # A blurred edge of the wall is neither wall nor background.
  beside = jnp.convolve(column.astype(jnp.float32), jnp.ones(3), mode="same")
  free = jnp.broadcast_to(beside[None] == 0, pixels.shape[:2])
  table = _backgrounds()
  ground, background = _find_background(pixels, free, table)
  cover = _unmix(pixels, ground) * ~column
  main = jax.vmap(_densest)(cover)
  ink = main.sum((1, 2))
  inked = main > EDGE_COVER
  clear = free & ~_grown(cover.max(0) > 0, 5)
  error = _errors(pixels, clear, table)
  centre = _centroids(main)
  seen = ink > 0
  middle = jnp.where(seen[:, None], centre, motion.SIZE / 2)
  crop = jnp.rint(jax.vmap(cut)(main, middle) * 255).astype(jnp.uint8)
  return (
    ink,
    cover.sum((1, 2)) - ink,
    jnp.where(seen[:, None], centre, jnp.nan),
    jnp.where(seen[:, None], jax.vmap(_box)(inked), jnp.nan),
    _touched(inked, cover > EDGE_COVER),
    crop,
    wall,
    background,
    error,
  )


def _backgrounds() -> Float[Array, "backgrounds 64 3"]:
  table = palette.background_table(motion.SIZE)
  return jnp.asarray(table.reshape(-1, *table.shape[2:]), jnp.float32)


def _find_wall(
  pixels: Float[Array, "64 64 3"],
) -> tuple[Float[Array, "2"], Bool[Array, "64"]]:
  """Returns the edges of the wall and the columns that it covers."""
  mortar = jnp.array(palette.MORTAR, jnp.float32)
  along = jnp.array(palette.WALL, jnp.float32) - mortar
  share = (pixels - mortar) @ along / (along @ along)
  nearest = mortar + jnp.clip(share, 0, 1)[..., None] * along
  far = jnp.linalg.norm(pixels - nearest, axis=-1).mean(0)
  brick = far < _WALL_DISTANCE
  left, right = brick.argmax(), len(brick) - brick[::-1].argmax()
  there = (brick.sum() >= _MIN_WALL) & (brick.sum() >= 0.8 * (right - left))
  edges = jnp.where(there, jnp.stack([left, right]), 0).astype(jnp.float32)
  number = jnp.arange(len(brick))
  return edges, (number >= edges[0]) & (number < edges[1])


def _find_background(
  pixels: Float[Array, "64 64 3"],
  free: Bool[Array, "64 64"],
  table: Float[Array, "backgrounds 64 3"],
) -> tuple[Float[Array, "64 1 3"], Int[Array, ""]]:
  """Returns the rows of the background, as shifted as it is, and its number."""
  away = pixels - table[:, :, None]
  far = jnp.linalg.norm(away, axis=-1)
  # Far pixels are digits; how far they are must not choose the background.
  cost = (jnp.minimum(far, _ODD) * free).sum((1, 2))
  best = cost.argmin()
  near = free & (far[best] < _ODD / 2)
  shift = (away[best] * near[..., None]).sum((0, 1)) / jnp.maximum(
    near.sum(), 1
  )
  return (table[best] + shift)[:, None], best.astype(jnp.int32)


def _errors(
  pixels: Float[Array, "64 64 3"],
  clear: Bool[Array, "64 64"],
  table: Float[Array, "backgrounds 64 3"],
) -> Float[Array, "backgrounds"]:
  """Returns how far rows are from each background; noise cancels in a row."""
  count = clear.sum(1)
  mean = (pixels * clear[..., None]).sum(1) / jnp.maximum(count, 1)[:, None]
  away = jnp.abs(mean - table).mean(-1) * (count > 0)
  return away.sum(1) / jnp.maximum((count > 0).sum(), 1)


def _unmix(
  pixels: Float[Array, "64 64 3"], ground: Float[Array, "64 1 3"]
) -> Float[Array, "colours 64 64"]:
  """Returns which share of each pixel each colour covers, Eq. (1)."""
  colours = jnp.asarray(palette.colour_table(), jnp.float32)
  away = pixels - ground
  line = colours[:, None, None] - ground
  share = (away * line).sum(-1) / (line * line).sum(-1)
  share = jnp.clip(share, 0, 1)
  far = jnp.linalg.norm(away - share[..., None] * line, axis=-1)
  number = jnp.arange(len(colours))[:, None, None]
  core = (share > _CORE_COVER) & (far < _FARTHEST) & (number == far.argmin(0))
  present = core.sum((1, 2)) >= _MIN_CORE
  far = jnp.where(present[:, None, None], far, jnp.inf)
  mine = (number == far.argmin(0)) & (far < _FARTHEST) & (share > EDGE_COVER)
  return jnp.where(mine, share, 0.0)


def _densest(cover: Float[Array, "64 64"]) -> Float[Array, "64 64"]:
  """Keeps the window with the most ink, which a digit fits into."""
  sums = cover
  for axis, length in enumerate(_WINDOW):
    shape = tuple(length if i == axis else 1 for i in range(2))
    sums = jax.lax.reduce_window(sums, 0.0, jax.lax.add, shape, (1, 1), "SAME")
  row, column = jnp.unravel_index(sums.argmax(), sums.shape)
  place = jnp.arange(motion.SIZE)
  rows = jnp.abs(place - row) <= _WINDOW[0] // 2
  columns = jnp.abs(place - column) <= _WINDOW[1] // 2
  return cover * (rows[:, None] & columns)


def _centroids(
  main: Float[Array, "colours 64 64"],
) -> Float[Array, "colours 2"]:
  place = jnp.arange(motion.SIZE) + 0.5
  total = jnp.maximum(main.sum((1, 2)), 1e-6)
  moments = jnp.stack([main.sum(1) @ place, main.sum(2) @ place], -1)
  return moments / total[:, None]


def _box(inked: Bool[Array, "64 64"]) -> Float[Array, "4"]:
  """Returns left, upper, right and lower edge of what is set."""
  low, high = [], []
  for axis in (0, 1):
    some = inked.any(axis)
    low.append(some.argmax())
    high.append(len(some) - some[::-1].argmax())
  return jnp.stack([*low, *high]).astype(jnp.float32)


def _touched(
  main: Bool[Array, "colours 64 64"], every: Bool[Array, "colours 64 64"]
) -> Bool[Array, "colours"]:
  """Tells whether other colours are within two pixels of each digit."""
  count = every.sum(0)
  others = (count[None] - every) > 0
  near = jax.vmap(functools.partial(_grown, size=5))(main)
  return (near & others).any((1, 2))


def _grown(mask: Bool[Array, "64 64"], size: int) -> Bool[Array, "64 64"]:
  return jax.lax.reduce_window(
    mask, False, jax.lax.bitwise_or, (size, size), (1, 1), "SAME"
  )
