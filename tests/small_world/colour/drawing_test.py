"""What is drawn has exactly the place, the ink and the colours it should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomla_jax.small_world.colour import digits
from videomla_jax.small_world.colour import drawing
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import palette

_cover = jax.jit(drawing.cover)


def draw(number, place, cover=_cover):
  written = digits.load("train")
  digit = (written.ink[number], written.first[number], written.last[number])
  return np.asarray(
    cover(*map(jnp.asarray, digit), jnp.asarray(place, jnp.int32))
  )


def places(rng, number, count):
  """Places, in sixteenths, of a digit that is wholly in the picture."""
  written = digits.load("train")
  half = (written.last[number] - written.first[number]) * 4 + 16
  return rng.integers(half, 1024 - half + 1, (count, 2))


def reference(number, place):
  """The sum over samples, one by one, in whole numbers of Python."""
  written = digits.load("train")
  total = np.zeros((64, 64), object)
  middle = written.first[number] + written.last[number]
  for row, column in zip(*np.nonzero(written.ink[number])):
    x = place[0] + (2 * int(column) - int(middle[0])) * 4
    y = place[1] + (2 * int(row) - int(middle[1])) * 4
    ink = int(written.ink[number][row, column])
    for i in {(y - 8) // 16, (y - 8) // 16 + 1}:
      for j in {(x - 8) // 16, (x - 8) // 16 + 1}:
        share = max(0, 16 - abs(16 * i + 8 - y)) * max(
          0, 16 - abs(16 * j + 8 - x)
        )
        if share:
          total[i, j] += ink * int(share)
  return (total * 256 + 255 * 512) // (255 * 1024)


def test_covers_equal_sums_in_whole_numbers(seed):
  rng = np.random.default_rng(seed)
  for number in rng.integers(0, 1500, 3):
    place = places(rng, number, 2)
    found = draw(number, place)
    for frame, at in zip(found, place.tolist(), strict=True):
      np.testing.assert_array_equal(frame, reference(number, at).astype(int))
    np.testing.assert_array_equal(found, draw(number, place, drawing.cover))


def test_centroid_and_ink_follow_the_place(seed):
  rng = np.random.default_rng(seed)
  written = digits.load("train")
  for number in rng.integers(0, 1500, 8):
    place = places(rng, number, 40)
    cover = draw(number, place) / drawing.OPAQUE
    total = cover.sum((1, 2))
    centre = np.arange(64) + 0.5
    found = np.stack([cover.sum(1) @ centre, cover.sum(2) @ centre], 1)
    found /= total[:, None]
    # Covers are whole 256ths: the only error there is.
    expected = place / 16 + written.offset[number]
    np.testing.assert_allclose(found, expected, atol=0.01)
    ink = written.ink[number].sum() / 255 / 4
    np.testing.assert_allclose(total, ink, rtol=0.005)


def test_a_step_of_whole_pixels_moves_the_pixels(seed):
  rng = np.random.default_rng(seed)
  number = int(rng.integers(1500))
  start = places(rng, number, 1)
  start = np.clip(start, 0, 1024 - 16 * 16)
  one, two = draw(number, [start[0], start[0] + [32, 48]])
  np.testing.assert_array_equal(np.roll(one, (3, 2), (0, 1)), two)


def test_covers_stay_in_the_box(seed):
  rng = np.random.default_rng(seed)
  written = digits.load("train")
  number = int(rng.integers(1500))
  half = (written.last[number] - written.first[number]) * 4 + 16
  for place in (half, 1024 - half, *places(rng, number, 20)):
    rows, columns = np.nonzero(draw(number, [place])[0])
    for axis, found in enumerate((columns, rows)):
      assert found.min() >= (place[axis] - half[axis]) // 16
      assert found.max() < -(-(place[axis] + half[axis]) // 16)


@pytest.mark.parametrize("wall", [(0, 0), (20, 44), (40, 64)])
def test_pictures_are_layers(seed, wall):
  """Background, second digit, first digit, wall: each hides those before."""
  rng = np.random.default_rng(seed)
  covers = np.stack(
    [draw(n, places(rng, n, 5)) for n in rng.integers(0, 1500, 2)], 1
  )
  colours = palette.colour_table()[:2]
  ground = palette.background_table(64)[1, 2]
  layers = tuple(map(jnp.asarray, (covers, colours, ground, wall)))
  pictures = jax.jit(drawing.paint)(*layers)
  assert pictures.dtype == jnp.uint8
  np.testing.assert_array_equal(pictures, drawing.paint(*layers))
  one, two = covers[:, 0, ..., None] / 256, covers[:, 1, ..., None] / 256
  expected = ground[:, None] * (1 - two) + colours[1] * two
  expected = expected * (1 - one) + colours[0] * one
  column = np.arange(64)
  behind = (column >= wall[0]) & (column < wall[1])
  np.testing.assert_allclose(
    np.asarray(pictures)[:, :, ~behind], expected[:, :, ~behind], atol=1.01
  )
  bricks = {tuple(c) for c in np.asarray(pictures)[:, :, behind].reshape(-1, 3)}
  assert bricks == ({palette.WALL, palette.MORTAR} if behind.any() else set())


def test_visible_is_the_share_that_nothing_covers(seed):
  rng = np.random.default_rng(seed)
  covers = np.stack(
    [draw(n, places(rng, n, 30)) for n in rng.integers(0, 1500, 2)], 1
  )
  drawn = jnp.asarray(covers)
  wall = jnp.array([30, 50])
  seen = np.asarray(drawing.visible(drawn, drawing.wall_columns(wall)))
  open_ = np.ones(64)
  open_[30:50] = 0
  one, two = covers[:, 0] / 256, covers[:, 1] / 256
  expected = np.stack(
    [
      (one * open_).sum((1, 2)) / one.sum((1, 2)),
      (two * (1 - one) * open_).sum((1, 2)) / two.sum((1, 2)),
    ],
    1,
  )
  np.testing.assert_allclose(seen, expected, atol=2e-3)
  alone = drawing.visible(drawn[:, :1], drawing.wall_columns(wall * 0))
  np.testing.assert_array_equal(alone, np.ones((30, 1)))
  assert motion.SIZE == 64
