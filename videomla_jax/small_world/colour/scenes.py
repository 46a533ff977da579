"""Draws prompts and scenes of the colour world at random.

All numbers are whole, so no scene depends on how a device rounds.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32, Key
import numpy as np

from videomla_jax.small_world.colour import digits
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import prompts
from videomla_jax.small_world.colour import words

Scalar = Int[Array, ""]

_NUM_PLACES = len(words.THING_PLACES)
_NUM_SPEEDS = len(prompts.SPEEDS)
_TRIES = 32  # of starts, until two digits do not touch


class Scene(NamedTuple):
  """What one clip shows.

  Attributes:
    present: Which of the two digits there are.
    digit: Which digit each is, 0..9.
    colour: Number of its colour in `prompts.COLOURS`.
    sprite: Number of its handwriting in `digits.load`.
    graded: Whether the background is graded.
    background: Its number in `prompts.BACKGROUNDS`.
    course: How the digits move, and the wall.
  """

  present: Bool[Array, "things"]
  digit: Int32[Array, "things"]
  colour: Int32[Array, "things"]
  sprite: Int32[Array, "things"]
  graded: Bool[Array, ""]
  background: Int32[Array, ""]
  course: motion.Course


def draw_choices(key: Key[Array, ""], split: str) -> Int32[Array, "places"]:
  """Draws a prompt.

  Half of the prompts name a second digit, and half a wall. Three in four digits
  first move towards a wall at the side.

  Args:
    key: Random key.
    split: "train" or "test", see `prompts.split_pairs`.

  Returns:
    Number of the word in each place, see `words.choices_of`.
  """
  dice = _Dice(key, 32)
  wall = dice.below(2) * (1 + dice.below(len(prompts.WALLS)))
  things = [
    jnp.stack([*pair, *_draw_way(dice, wall), 1 + dice.below(_NUM_SPEEDS)])
    for pair in _draw_pairs(dice, split)
  ]
  things[1] = things[1] * dice.below(2)
  style = 1 + dice.below(len(prompts.STYLES))
  background = 1 + dice.below(len(prompts.BACKGROUNDS))
  return jnp.stack([*things[0], *things[1], style, background, wall])


def draw_scene(
  key: Key[Array, ""], choices: Int[Array, "places"], split: str
) -> Scene:
  """Draws what a prompt leaves open: handwriting, wall and starts.

  In frame 0 every digit is whole and touches no other.

  Args:
    key: Random key.
    choices: Number of the word in each place of a prompt that `prompts.Prompt`
      accepts, see `words.choices_of`.
    split: Whose handwriting, "train" or "test".
  """
  dice = _Dice(key, 8 + 4 * _TRIES)
  things = choices[: words.STYLE].reshape(prompts.MOST_THINGS, _NUM_PLACES)
  present = things[:, words.COLOUR] > 0
  # What is absent has the looks and the way of the first digit, and limits
  # nothing.
  things = jnp.where(present[:, None], things, things[:1])
  digit = things[:, words.DIGIT] - 1
  sprite = _draw_sprites(dice, digit, split)
  sprite = jnp.where(present, sprite, sprite[:1])
  written = digits.load(split)
  # Samples lie half a pixel apart, and each reaches a pixel to either side.
  box = (written.last - written.first) * (motion.UNIT // 4) + motion.UNIT
  half = jnp.asarray(box)[sprite]
  speed = jnp.array(motion.PX_PER_SECOND)[things[:, words.SPEED] - 1]
  way = jnp.stack([things[:, words.LEFT_RIGHT], things[:, words.UP_DOWN]], 1)
  # Words of a pair are numbered against and along an axis: 1 and 2, 0 is rest.
  sense = jnp.where(way > 0, 2 * way - 3, 0)
  velocity = sense * speed[:, None]
  wall = _draw_wall(dice, half[:, 0], speed, choices[words.WALL])
  start = _draw_starts(dice, half, velocity, wall, choices[words.WALL])
  return Scene(
    present=present,
    digit=jnp.where(present, digit, 0).astype(jnp.int32),
    colour=jnp.where(present, things[:, words.COLOUR] - 1, 0).astype(jnp.int32),
    sprite=sprite.astype(jnp.int32),
    graded=choices[words.STYLE] == 2,
    background=(choices[words.BACKGROUND] - 1).astype(jnp.int32),
    course=motion.Course(start, velocity, half, wall),
  )


class _Dice:
  """Random whole numbers that are all drawn at once from one key.

  A key for each of them would make programs that take twice as long to compile.
  No number is likelier than another by more than a millionth.
  """

  def __init__(self, key: Key[Array, ""], most: int) -> None:
    self._bits = jax.random.bits(key, (most,), jnp.uint32)
    self._used = 0

  def below(
    self, number: int | Int[Array, "..."], shape: tuple[int, ...] = ()
  ) -> Int32[Array, "..."]:
    """Returns whole numbers from 0 to below `number`.

    Args:
      number: At least 1, of a shape that fits the other one.
      shape: Shape of the result.
    """
    first, self._used = self._used, self._used + math.prod(shape)
    assert self._used <= len(self._bits), "more numbers than were drawn"
    bits = self._bits[first : self._used].reshape(shape)
    return (bits % jnp.asarray(number, jnp.uint32)).astype(jnp.int32)


class _Pairs(NamedTuple):
  """Pairs of digit and colour of a split, numbered as words are.

  Attributes:
    pairs: Numbers of colour and digit, from 1.
    others: Rows of `pairs` of another colour, for each colour, repeated to
      equal length.
    available: How many of them there are.
  """

  pairs: Int32[np.ndarray, "pairs 2"]
  others: Int32[np.ndarray, "colours most"]
  available: Int32[np.ndarray, "colours"]


@functools.cache
def _pairs(split: str) -> _Pairs:
  number = {colour: i + 1 for i, colour in enumerate(prompts.COLOURS)}
  pairs = np.array(
    [(number[c], d + 1) for d, c in prompts.split_pairs(split)], np.int32
  )
  rows = [np.flatnonzero(pairs[:, 0] != c) for c in number.values()]
  return _Pairs(pairs, *_equal_rows(rows))


@functools.cache
def _sprites(
  split: str,
) -> tuple[Int32[np.ndarray, "10 most"], Int32[np.ndarray, "10"]]:
  """Returns the numbers of each digit's handwriting, and how many there are."""
  label = digits.load(split).label
  return _equal_rows([np.flatnonzero(label == d) for d in range(10)])


def _equal_rows(
  rows: list[np.ndarray],
) -> tuple[Int32[np.ndarray, "rows most"], Int32[np.ndarray, "rows"]]:
  """Repeats rows to the length of the longest; returns their lengths too."""
  most = max(map(len, rows))
  table = np.stack([np.resize(row, most) for row in rows])
  return table.astype(np.int32), np.array([*map(len, rows)], np.int32)


def _draw_pairs(dice: _Dice, split: str) -> Int[Array, "2 2"]:
  """Draws colour and digit of two digits whose colours differ."""
  table = _pairs(split)
  pairs, available = jnp.asarray(table.pairs), jnp.asarray(table.available)
  one = pairs[dice.below(len(table.pairs))]
  colour = one[0] - 1
  other = jnp.asarray(table.others)[colour, dice.below(available[colour])]
  return jnp.stack([one, pairs[other]])


def _draw_way(dice: _Dice, wall: Scalar) -> tuple[Scalar, Scalar]:
  """Draws a vertical and a horizontal word, 0 for none, not both none."""
  eight = 1 + dice.below(8)  # all of 3 x 3 but rest
  vertical, horizontal = eight // 3, eight % 3
  there = jnp.where(wall == motion.LEFT, 1, 2)
  there = jnp.where(wall == motion.MIDDLE, 1 + dice.below(2), there)
  away = (wall != motion.MIDDLE) & (dice.below(4) == 0)
  across = jnp.where(away, 3 - there, there)
  return (
    jnp.where(wall > 0, dice.below(3), vertical),
    jnp.where(wall > 0, across, horizontal),
  )


def _draw_sprites(
  dice: _Dice, digit: Int[Array, "things"], split: str
) -> Int[Array, "things"]:
  table, available = map(jnp.asarray, _sprites(split))
  return table[digit, dice.below(available[digit], digit.shape)]


def _draw_wall(
  dice: _Dice,
  half: Int[Array, "things"],
  speed: Int[Array, "things"],
  kind: Scalar,
) -> Int[Array, "2"]:
  """Draws the left and right edge of a wall, in pixels; 0 and 0 for none."""
  low, high = motion.wall_widths(half, speed, kind)
  # The wider of two draws: long absences are what asks for memory.
  width = low + dice.below(high - low + 1, (2,)).max()
  low, high = motion.wall_left(width, 2 * half.max(), kind)
  left = low + dice.below(high - low + 1)
  return jnp.where(kind > 0, jnp.stack([left, left + width]), 0)


def _draw_starts(
  dice: _Dice,
  half: Int[Array, "things 2"],
  velocity: Int[Array, "things 2"],
  wall: Int[Array, "2"],
  kind: Scalar,
) -> Int[Array, "things 2"]:
  """Draws where digits begin; the first of many draws that keeps them apart."""
  # In front of a wall in the middle they move towards it.
  to_left = velocity[:, 0] < 0
  on_right = jnp.where(kind == motion.MIDDLE, to_left, kind == motion.LEFT)
  low, high = motion.open_space(half, velocity, wall, on_right=on_right)
  starts = low + dice.below(high - low + 1, (_TRIES, *low.shape))
  # Two digits fit one above the other, a pixel from the edges, which is the
  # last resort.
  top = half[0, 1] + motion.UNIT
  bottom = motion.UNIT * (motion.SIZE - 1) - half[1, 1]
  starts = starts.at[-1, :, 1].set(jnp.stack([top, bottom]))
  distance = abs(starts[:, 0] - starts[:, 1])
  good = (distance > half.sum(0)).any(1).at[-1].set(True)
  return starts[good.argmax()]
