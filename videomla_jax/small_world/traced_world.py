"""Clips of the small world drawn inside a compiled program.

`world` draws with NumPy, clip by clip. Here the same clips are drawn by JAX, so
that a program which trains several models at once makes its own batches and
waits for nobody. Prompts, handwriting, starts and senses have the distributions
of `world.sample_clip`; the random numbers are others.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Int32, Key, UInt8
import numpy as np

from videomla_jax.small_world import bounce
from videomla_jax.small_world import prompts
from videomla_jax.small_world import world

_WORLD = world.World()
_AXES = {"horizontal": (1, 0), "vertical": (0, 1), "diagonal": (1, 1)}


class _Tables(NamedTuple):
  """What a split of the world consists of, as constants of the program.

  Attributes:
    tokens: Word ids of each prompt.
    digit: Digit of each prompt.
    moving: Whether x and y change under each prompt.
    speed: Pixels per frame along each moving axis.
    sprites: Handwritten digits, bytes.
    of_digit: Numbers of the sprites of each digit, repeated to equal length.
    available: Sprites of each digit.
  """

  tokens: Int32[np.ndarray, "prompts 4"]
  digit: Int32[np.ndarray, "prompts"]
  moving: Int32[np.ndarray, "prompts 2"]
  speed: Int32[np.ndarray, "prompts"]
  sprites: UInt8[np.ndarray, "n 8 8"]
  of_digit: Int32[np.ndarray, "10 most"]
  available: Int32[np.ndarray, "10"]


@functools.cache
def _tables(split: str) -> _Tables:
  every = world.split_prompts(split)
  images, labels = world.load_sprites(split)
  rows = [np.flatnonzero(labels == d) for d in range(len(prompts.DIGITS))]
  most = max(map(len, rows))
  return _Tables(
    tokens=prompts.tokenize_batch([p.text() for p in every]),
    digit=np.array([p.digit for p in every], np.int32),
    moving=np.array([_AXES[p.direction] for p in every], np.int32),
    speed=np.array([_WORLD.speed(p) for p in every], np.int32),
    sprites=np.rint(images * 255).astype(np.uint8),
    of_digit=np.stack([np.resize(r, most) for r in rows]).astype(np.int32),
    available=np.array([*map(len, rows)], np.int32),
  )


def batch(
  key: Array,
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
    split: "train" or "test", see `world.SPLITS`.
    prompt_dropout: Chance that a whole prompt becomes padding, 0..1.
    word_dropout: Chance that a single word becomes padding, 0..1.

  Returns:
    "video", uint8 `[size, num_frames, 24, 24, 1]`, and "tokens", int32
    `[size, 4]`.
  """
  tables = _tables(split)
  keys = jax.random.split(key, 6)
  prompt = jax.random.randint(keys[0], (size,), 0, len(tables.tokens))
  at = lambda table: jnp.asarray(table)[prompt]
  digit, moving, speed = at(tables.digit), at(tables.moving), at(tables.speed)
  number = jax.random.randint(keys[1], (size,), 0, _of(tables.available, digit))
  sprite = jnp.asarray(tables.of_digit)[digit, number]
  # A moving axis starts on the grid of its speed, a resting one on the lattice.
  grid = jnp.where(moving > 0, speed[:, None], _WORLD.lattice)
  most = _WORLD.reach // grid + 1
  start = grid * jax.random.randint(keys[2], (size, 2), 0, most)
  sense = jax.random.choice(keys[3], jnp.array([-1, 1]), (size, 2))
  path = paths(start, moving * sense * speed[:, None], num_frames)
  video = render(jnp.asarray(tables.sprites)[sprite], path)
  tokens = drop_words(
    (keys[4], keys[5]), at(tables.tokens), word_dropout, prompt_dropout
  )
  return {"video": video, "tokens": tokens}


def drop_words(
  keys: tuple[Key[Array, ""], Key[Array, ""]],
  tokens: Int32[Array, "B M"],
  word_dropout: float | int,
  prompt_dropout: float | int,
) -> Int32[Array, "B M"]:
  """Replaces words, and whole prompts, by padding.

  Args:
    keys: Random keys of words and of prompts.
    tokens: Word ids of each prompt.
    word_dropout: Chance of a word, 0..1.
    prompt_dropout: Chance of a prompt, 0..1.
  """
  of_words, of_prompts = keys
  dropped = jax.random.bernoulli(of_words, word_dropout, tokens.shape)
  dropped |= jax.random.bernoulli(of_prompts, prompt_dropout, (len(tokens), 1))
  return jnp.where(dropped, jnp.int32(prompts.PADDING), tokens)


def _of(table: np.ndarray, index: Array) -> Array:
  return jnp.asarray(table)[index]


def paths(
  start: Int[Array, "B 2"], velocity: Int[Array, "B 2"], num_frames: int
) -> Int32[Array, "B T 2"]:
  """Returns where digits are in every frame, Eq. (1) of `bounce`.

  Args:
    start: Top-left corners (x, y) in frame 0, pixels.
    velocity: Pixels per frame, 0 on a resting axis.
    num_frames: Frames.
  """
  time = jnp.arange(num_frames)[:, None]
  straight = start[:, None] + velocity[:, None] * time
  return bounce.fold(straight, _WORLD.reach).astype(jnp.int32)


def render(
  sprites: UInt8[Array, "B 8 8"], path: Int32[Array, "B T 2"]
) -> UInt8[Array, "B T 24 24 1"]:
  """Draws digits at every position on a black background.

  Args:
    sprites: A digit for each clip.
    path: Top-left corners (x, y) in pixels, inside the frame.
  """
  side = _WORLD.frame_size

  def frame(sprite: Array, corner: Array) -> Array:
    empty = jnp.zeros((side, side), jnp.uint8)
    return jax.lax.dynamic_update_slice(empty, sprite, (corner[1], corner[0]))

  clip = jax.vmap(frame, in_axes=(None, 0))
  return jax.vmap(clip)(sprites, path)[..., None]
