"""Digits bounce off edges at their own size, and walls hide them long enough."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomla_jax.small_world.colour import motion

EDGE = motion.SIZE * motion.UNIT
KINDS = (motion.LEFT, motion.MIDDLE, motion.RIGHT)
# Of half widths of digits, in sixteenths: 4.5 to 15 px and a pixel more.
SLIMMEST, WIDEST = 16 + 4 * 8, 16 + 4 * 29

_follow = jax.jit(motion.follow, static_argnums=1)


def random_course(rng, wall=(0, 0)):
  half = np.stack(
    [rng.integers(SLIMMEST, WIDEST + 1, 2), rng.integers(160, 181, 2)], 1
  )
  return motion.Course(
    start=rng.integers(half, EDGE - half + 1),
    velocity=rng.choice(motion.PX_PER_SECOND, (2, 1))
    * rng.choice((-1, 0, 1), (2, 2)),
    half=half,
    wall=np.array(wall),
  )


def runs(hidden):
  """First frames and lengths of the complete runs of hidden frames."""
  padded = np.concatenate([[False], hidden, [False]]).astype(int)
  first = np.flatnonzero(np.diff(padded) == 1)
  last = np.flatnonzero(np.diff(padded) == -1)
  return [(a, b - a) for a, b in zip(first, last) if b < len(hidden)]


def test_digits_never_leave_the_picture_and_keep_their_speed(seed):
  rng = np.random.default_rng(seed)
  for _ in range(20):
    course = random_course(rng)
    path = jax.device_get(_follow(course, 960))
    assert (path.place >= course.half).all()
    assert (path.place <= EDGE - course.half).all()
    speed = np.abs(path.velocity)
    assert (speed == np.abs(course.velocity)).all()
    # Between frames a digit moves as its velocity says, unless it bounces.
    step = np.diff(path.place, axis=0)
    bounces = path.velocity[1:] != path.velocity[:-1]
    np.testing.assert_array_equal(step[~bounces], path.velocity[:-1][~bounces])
    assert (np.abs(step) <= speed[1:]).all()
    for frame, thing, axis in zip(*np.nonzero(bounces)):
      # It has touched the edge in between, so both parts make up its speed.
      before, after = path.place[frame : frame + 2, thing, axis]
      half = course.half[thing, axis]
      edge = EDGE - half if path.velocity[frame, thing, axis] > 0 else half
      assert abs(edge - before) + abs(after - edge) == speed[0, thing, axis]


def test_all_speeds_are_whole_sixteenths_of_a_pixel_a_frame():
  assert motion.UNIT == motion.FPS


def test_hidden_is_a_box_behind_the_wall(seed):
  rng = np.random.default_rng(seed)
  course = random_course(rng, (10, 50))
  path = jax.device_get(_follow(course, 400))
  left = path.place[..., 0] - course.half[:, 0]
  right = path.place[..., 0] + course.half[:, 0]
  np.testing.assert_array_equal(path.hidden, (left >= 160) & (right <= 800))
  assert not jax.device_get(_follow(random_course(rng), 400)).hidden.any()


@pytest.mark.parametrize("kind", KINDS)
def test_any_two_digits_have_a_wall(kind):
  """All sizes at all speeds leave at least one width and one place."""
  sizes = np.arange(SLIMMEST, WIDEST + 1, 4)
  axes = np.meshgrid(sizes, sizes, *[motion.PX_PER_SECOND] * 2)
  rows = np.stack(axes, -1).reshape(-1, 4)

  @jax.jit
  @jax.vmap
  def places(half, speed):
    widths = motion.wall_widths(half, speed, jnp.int32(kind))
    widest = 2 * half.max()
    return widths, [
      motion.wall_left(width, widest, jnp.int32(kind)) for width in widths
    ]

  (low, high), lefts = jax.device_get(places(rows[:, :2], rows[:, 2:]))
  assert (low > 0).all()
  assert (low <= high).all()
  for width, (first, last) in zip((low, high), lefts, strict=True):
    assert (first >= 0).all()
    assert (first <= last).all()
    assert (last + width <= motion.SIZE).all()


@pytest.mark.parametrize("kind", KINDS)
def test_digits_are_behind_a_wall_for_half_a_second_to_four(seed, kind):
  rng = np.random.default_rng(seed)
  seen = 0
  for _ in range(30):
    course = random_course(rng)
    speed = np.array(rng.choice(motion.PX_PER_SECOND, 2))
    half = course.half[:, 0]
    low, high = motion.wall_widths(
      jnp.asarray(half), jnp.asarray(speed), jnp.int32(kind)
    )
    width = rng.integers(low, int(high) + 1)
    low, high = motion.wall_left(
      jnp.int32(width), jnp.int32(2 * half.max()), jnp.int32(kind)
    )
    left = rng.integers(low, int(high) + 1)
    assert 0 <= left <= left + width <= motion.SIZE
    if kind == motion.LEFT:
      assert left == 0
    if kind == motion.RIGHT:
      assert left + width == motion.SIZE
    wall = jnp.array([left, left + width])
    on_right = jnp.array(
      [
        kind == motion.LEFT or (kind == motion.MIDDLE and i == 1)
        for i in (0, 1)
      ]
    )
    places = motion.open_space(
      jnp.asarray(course.half),
      jnp.zeros((2, 2), jnp.int32),
      wall,
      on_right=on_right,
    )
    course = course._replace(
      start=rng.integers(places[0], np.asarray(places[1]) + 1),
      velocity=np.stack([speed, 0 * speed], 1),
      wall=np.asarray(wall),
    )
    path = jax.device_get(_follow(course, 960))
    x = path.place[..., 0]
    for thing in (0, 1):
      assert not path.hidden[0, thing]
      found = runs(path.hidden[:, thing])
      seen += len(found)
      assert len(found) >= 4  # in a minute
      right_of = x[:, thing] - half[thing] >= 16 * (left + width)
      whole = right_of | (x[:, thing] + half[thing] <= 16 * left)
      after = 0
      for first, length in found:
        assert motion.FEWEST_HIDDEN <= length <= motion.MOST_HIDDEN
        # It is seen whole each time before it passes.
        assert whole[after:first].any()
        after = first + length
  assert seen > 300
