"""The colour world: clips with their prompts and the whole truth about them.

One or two handwritten digits of about 20 px in named colours move at constant
speed over a named background of 64 x 64 pixels, at 16 frames a second, and
bounce off the edges. In half of the clips there is a wall, behind which they
are for 0.5 to 4 s at a time. Everything is drawn by JAX in one program, from a
key, for any number of frames, in whole numbers up to the truth's quotients:
equal keys give equal clips, compiled or not.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Int32, Key, UInt8

from videomla_jax.small_world import traced_world
from videomla_jax.small_world.colour import digits
from videomla_jax.small_world.colour import drawing
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import palette
from videomla_jax.small_world.colour import scenes
from videomla_jax.small_world.colour import words


class Truth(NamedTuple):
  """What is true of clips; the first axis of every array is the clip.

  Coordinates are (x, y) in pixels from the left and upper edge of the frame, so
  the first pixel reaches from 0 to 1. Where a digit is absent, whatever depends
  on it is 0 or False, and `digit` and `colour` are -1.

  Attributes:
    digit: Which digits there are, 0..9, the front one first.
    colour: Numbers of their colours in `prompts.COLOURS`.
    sprite: Numbers of their handwriting in `digits.load`.
    half: Half the width and height of each digit's box, pixels.
    offset: Centroid of each digit's ink less the middle of its box, pixels.
    position: Middle of each digit's box in every frame, pixels.
    velocity: Velocity in every frame, px/s; at an edge, after the bounce.
    visible: Share of each digit's ink that neither the wall nor the other
      digit covers, 0..1.
    hidden: Whether the whole box of a digit is behind the wall.
    wall: Left and right edge of the wall, pixels; both 0 if there is none.
    background: Number of its colour in `prompts.BACKGROUNDS`.
    graded: Whether the background is graded.
  """

  digit: Int32[Array, "B things"]
  colour: Int32[Array, "B things"]
  sprite: Int32[Array, "B things"]
  half: Float32[Array, "B things 2"]
  offset: Float32[Array, "B things 2"]
  position: Float32[Array, "B T things 2"]
  velocity: Float32[Array, "B T things 2"]
  visible: Float32[Array, "B T things"]
  hidden: Bool[Array, "B T things"]
  wall: Float32[Array, "B 2"]
  background: Int32[Array, "B"]
  graded: Bool[Array, "B"]


class Clips(NamedTuple):
  """Clips, what they were asked to show, and the truth.

  Attributes:
    video: Pixels, 0..255.
    choices: Number of the word in each place, see `words.choices_of`.
    truth: What is true of each clip.
  """

  video: UInt8[Array, "B T size size 3"]
  choices: Int32[Array, "B places"]
  truth: Truth


def sample(
  key: Key[Array, ""],
  *,
  size: int,
  num_frames: int,
  split: str = "train",
  first: int | Int[Array, ""] = 0,
) -> Clips:
  """Draws clips of random prompts.

  Clip i of a key does not depend on how many are drawn, and its first frames
  do not depend on how many frames are.

  Args:
    key: Random key.
    size: Number of clips.
    num_frames: Frames of a clip, at least 1.
    split: "train" or "test": training handwriting and pairs of digit and
      colour, or held-out ones.
    first: Number of the first clip; the others follow it.

  Raises:
    ValueError: If there is no such split or there are no frames.
  """
  of_choices, of_scenes = jax.random.split(key)
  draw = functools.partial(scenes.draw_choices, split=split)
  choices = jax.vmap(draw)(_keys(of_choices, size, first))
  return film(
    of_scenes, choices, num_frames=num_frames, split=split, first=first
  )


def film(
  key: Key[Array, ""],
  choices: Int[Array, "B places"],
  *,
  num_frames: int,
  split: str,
  first: int | Int[Array, ""] = 0,
) -> Clips:
  """Draws a clip of each prompt.

  Args:
    key: Random key.
    choices: Number of the word in each place of prompts that `prompts.Prompt`
      accepts, see `words.choices_of`.
    num_frames: Frames of a clip, at least 1.
    split: Whose handwriting, "train" or "test".
    first: Number of the first clip; the others follow it.

  Raises:
    ValueError: If there is no such split or there are no frames.
  """
  if num_frames < 1:
    raise ValueError(
      f"num_frames={num_frames} must be positive; use 1 or more."
    )
  one = functools.partial(_film, num_frames=num_frames, split=split)
  video, truth = jax.vmap(one)(_keys(key, len(choices), first), choices)
  return Clips(video, choices.astype(jnp.int32), truth)


def batch(
  key: Key[Array, ""],
  *,
  size: int,
  num_frames: int,
  split: str = "train",
  prompt_dropout: float | int = 0.0,
  word_dropout: float | int = 0.0,
) -> dict[str, Array]:
  """Returns clips and their prompts, as `loader` gives them.

  Args:
    key: Random key.
    size: Clips.
    num_frames: Frames of a clip.
    split: "train" or "test", see `sample`.
    prompt_dropout: Chance that a whole prompt becomes padding, 0..1.
    word_dropout: Chance that a single word becomes padding, 0..1.

  Returns:
    "video", uint8 `[size, num_frames, 64, 64, 3]`, and "tokens", int32
    `[size, 13]`.
  """
  of_clips, of_prompts, of_words = jax.random.split(key, 3)
  clips = sample(of_clips, size=size, num_frames=num_frames, split=split)
  tokens = traced_world.drop_words(
    (of_words, of_prompts),
    words.tokens_of(clips.choices).astype(jnp.int32),
    word_dropout,
    prompt_dropout,
  )
  return {"video": clips.video, "tokens": tokens}


def _keys(
  key: Key[Array, ""], number: int, first: int | Int[Array, ""]
) -> Key[Array, "n"]:
  """Returns keys of numbered clips."""
  numbers = first + jnp.arange(number)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def _film(
  key: Key[Array, ""],
  choices: Int[Array, "places"],
  *,
  num_frames: int,
  split: str,
) -> tuple[UInt8[Array, "T size size 3"], Truth]:
  """Draws one clip; the arrays of its truth have no first axis."""
  scene = scenes.draw_scene(key, choices, split)
  path = motion.follow(scene.course, num_frames)
  written = digits.load(split)
  of_sprite = lambda table: jnp.asarray(table)[scene.sprite]
  covers = jax.vmap(drawing.cover, (0, 0, 0, 1), 1)(
    of_sprite(written.ink),
    of_sprite(written.first),
    of_sprite(written.last),
    path.place,
  )
  present = scene.present
  covers = covers * present[:, None, None]
  wall = scene.course.wall
  ground = jnp.asarray(palette.background_table(motion.SIZE))
  video = drawing.paint(
    covers,
    jnp.asarray(palette.colour_table())[scene.colour],
    ground[scene.graded.astype(jnp.int32), scene.background],
    wall,
  )
  pixels = lambda units: units.astype(jnp.float32) / motion.UNIT
  seen = present[:, None]
  truth = Truth(
    digit=jnp.where(present, scene.digit, -1),
    colour=jnp.where(present, scene.colour, -1),
    sprite=jnp.where(present, scene.sprite, 0),
    half=jnp.where(seen, pixels(scene.course.half), 0.0),
    offset=jnp.where(seen, of_sprite(written.offset), 0.0),
    position=jnp.where(seen, pixels(path.place), 0.0),
    velocity=jnp.where(seen, path.velocity.astype(jnp.float32), 0.0),
    visible=drawing.visible(covers, drawing.wall_columns(wall)),
    hidden=path.hidden & present,
    wall=wall.astype(jnp.float32),
    background=scene.background,
    graded=scene.graded,
  )
  return video, truth
