"""Clips of the colour world whose faults are known, drawn by its own drawing."""

import copy
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from videomla_jax.small_world import bounce
from videomla_jax.small_world.colour import digits
from videomla_jax.small_world.colour import drawing
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import palette
from videomla_jax.small_world.colour import prompts
from videomla_jax.small_world.colour import words
from videomla_jax.small_world.colour import world

NUM_FRAMES = 144
SPLIT = "train"
TEXTS = {
  "one": "a fast red 3 moves up and right, on a graded navy background",
  "two": (
    "a slow cyan 7 moves down, a fast yellow 2 moves up and left,"
    " on a plain plum background"
  ),
  "middle": (
    "a slow green 4 moves up and right, on a graded grey background,"
    " with a wall in the middle"
  ),
  "left": (
    "a fast pink 0 moves left, on a plain forest background,"
    " with a wall on the left"
  ),
}
NAMES = (*TEXTS,)
PROMPTS = [prompts.parse(text) for text in TEXTS.values()]


class Drawn(NamedTuple):
  """What is drawn of one digit, frame by frame; arrays may be changed.

  Attributes:
    sprite: Number of its handwriting.
    colour: Its colour in RGB.
    place: Middle (x, y) of its box, pixels.
    there: Whether it is drawn.
    half: Half the width and height of its box, pixels.
    velocity: Its velocity, px/s.
  """

  sprite: np.ndarray
  colour: np.ndarray
  place: np.ndarray
  there: np.ndarray
  half: np.ndarray
  velocity: np.ndarray


class Scene(NamedTuple):
  """What one video shows.

  Attributes:
    things: Its digits, the front one first.
    ground: Colour of each row.
    wall: Left and right edge of the wall; equal if there is none.
    hidden: Whether each digit is behind the wall, frame by frame.
  """

  things: list[Drawn]
  ground: np.ndarray
  wall: np.ndarray
  hidden: np.ndarray


def scenes() -> tuple[list[Scene], np.ndarray, world.Truth]:
  """Returns the scene of each prompt, its real clips and their truth."""
  choices = np.stack([words.choices_of(prompt) for prompt in PROMPTS])
  clips = jax.device_get(
    world.film(
      jax.random.key(183),
      jnp.asarray(choices),
      num_frames=NUM_FRAMES,
      split=SPLIT,
    )
  )
  return (
    [_scene(clips.truth, i) for i in range(len(PROMPTS))],
    clips.video,
    clips.truth,
  )


def change(scene: Scene) -> Scene:
  """Returns a copy of a scene whose arrays may be changed."""
  return copy.deepcopy(scene)


def colour_of(name: str) -> np.ndarray:
  """Returns RGB of a named colour."""
  return np.array(palette.COLOURS[name])


def sprite_of(digit: int) -> int:
  """Returns the number of some handwriting of a digit."""
  return int(np.flatnonzero(digits.load(SPLIT).label == digit)[5])


def bounced(thing: Drawn, velocity: np.ndarray) -> np.ndarray:
  """Returns the path of a digit from its first place at another velocity."""
  time = np.arange(NUM_FRAMES)[:, None]
  straight = thing.place[0] - thing.half + velocity / motion.FPS * time
  reach = motion.SIZE - 2 * thing.half
  return bounce.fold(straight, reach) + thing.half


def draw(scene: Scene) -> np.ndarray:
  """Draws a scene, as `world` draws its own."""
  covers = np.stack([_cover(thing) for thing in scene.things], 1)
  picture = np.broadcast_to(
    scene.ground[None, :, None].astype(int), (NUM_FRAMES, 64, 64, 3)
  )
  for i in reversed(range(len(scene.things))):
    share = covers[:, i, ..., None].astype(int)
    colour = scene.things[i].colour[:, None, None].astype(int)
    mixed = picture * (drawing.OPAQUE - share) + colour * share
    picture = (mixed + drawing.OPAQUE // 2) // drawing.OPAQUE
  wall = jnp.asarray(scene.wall.astype(int))
  behind = np.asarray(drawing.wall_columns(wall))[:, None]
  bricks = np.asarray(drawing.bricks(wall))
  return np.where(behind, bricks, picture).astype(np.uint8)


def _cover(thing: Drawn) -> np.ndarray:
  written = digits.load(SPLIT)
  units = np.rint(thing.place * motion.UNIT).astype(np.int32)
  total = np.zeros((NUM_FRAMES, 64, 64), np.int32)
  for sprite in np.unique(thing.sprite):
    cover = drawing.cover(
      jnp.asarray(written.ink[sprite]),
      jnp.asarray(written.first[sprite]),
      jnp.asarray(written.last[sprite]),
      jnp.asarray(units),
    )
    chosen = (thing.sprite == sprite) & thing.there
    total += np.asarray(cover) * chosen[:, None, None]
  return total


def _scene(truth: world.Truth, index: int) -> Scene:
  count = int((truth.digit[index] >= 0).sum())
  every = np.ones(NUM_FRAMES, int)
  table = palette.colour_table()
  things = [
    Drawn(
      sprite=truth.sprite[index, k] * every,
      colour=np.tile(table[truth.colour[index, k]], (NUM_FRAMES, 1)),
      place=truth.position[index, :, k].astype(float),
      there=every.astype(bool),
      half=truth.half[index, k].astype(float),
      velocity=truth.velocity[index, 0, k].astype(float),
    )
    for k in range(count)
  ]
  grounds = palette.background_table(motion.SIZE)
  graded, number = int(truth.graded[index]), truth.background[index]
  return Scene(
    things, grounds[graded, number], truth.wall[index], truth.hidden[index]
  )
