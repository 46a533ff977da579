"""The two small worlds, by what training and sampling ask of them.

A world is a row of `WORLDS`, by the name that `data.kind` of a training config
and the config of a model have.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools

import jax
from jaxtyping import Int32
import numpy as np

from videomla_jax.small_world import codecs
from videomla_jax.small_world import prompts
from videomla_jax.small_world import world as moving_digits
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import scenes
from videomla_jax.small_world.colour import words

_NUM_HELD_OUT = 24  # prompts of the colour world that samples show


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
  """What models of a small world are made for.

  Attributes:
    tokenize_batch: Turns prompts into token ids, or raises `ValueError`.
    vocabulary: Number of token ids, padding included.
    num_tokens: Tokens of a prompt.
    held_out: Returns prompts that training never shows.
    latent_shape: Rows, columns and channels of a latent frame.
    spatial_stride: Pixels per latent pixel, along one side.
    temporal_stride: Pixel frames per latent frame after the first.
    fps: Pixel frames per second.
    codec: What all models of the world have; None if each has a VAE.
    halves: Whether networks multiply in bfloat16 where that is faster.
    scale: Screen pixels per pixel in videos that training shows.
  """

  tokenize_batch: Callable[[Sequence[str]], Int32[np.ndarray, "B M"]]
  vocabulary: int
  num_tokens: int
  held_out: Callable[[], tuple[str, ...]]
  latent_shape: tuple[int, int, int]
  spatial_stride: int
  temporal_stride: int
  fps: float
  codec: codecs.PixelCodec | None
  halves: bool
  scale: int

  def check_vae(self, vae: codecs.StoredVae, *, name: str) -> None:
    """Refuses a VAE whose latents have another shape.

    Args:
      vae: The VAE of a model or of data.
      name: What it is called, for the message.

    Raises:
      ValueError: If it does not fit.
    """
    found = vae.temporal_stride, vae.spatial_stride, vae.channels
    wanted = self.temporal_stride, self.spatial_stride, self.latent_shape[-1]
    if found != wanted:
      raise ValueError(
        f"{name}={str(vae.folder)!r} has strides of {found[0]} frames and "
        f"{found[1]} pixels and {found[2]} channels, but networks of this "
        f"world need {wanted[0]}, {wanted[1]} and {wanted[2]}; train one by "
        "train_vae --config=configs/vae.py:world."
      )


def _digits_held_out() -> tuple[str, ...]:
  return tuple(p.text() for p in prompts.held_out_prompts())


@functools.cache
def _colour_held_out() -> tuple[str, ...]:
  """Returns some prompts of held-out pairs of digit and colour."""
  keys = jax.random.split(jax.random.key(0), _NUM_HELD_OUT)
  draw = jax.vmap(functools.partial(scenes.draw_choices, split="test"))
  chosen = jax.device_get(jax.jit(draw)(keys))
  return tuple(words.prompt_of(choices).text() for choices in chosen)


def _digits() -> World:
  world, codec = moving_digits.World(), codecs.PixelCodec()
  side = world.frame_size // codec.spatial_stride
  return World(
    tokenize_batch=prompts.tokenize_batch,
    vocabulary=prompts.vocabulary_size(),
    num_tokens=prompts.NUM_TOKENS,
    held_out=_digits_held_out,
    latent_shape=(side, side, codec.channels),
    spatial_stride=codec.spatial_stride,
    temporal_stride=codec.temporal_stride,
    fps=float(world.fps),
    codec=codec,
    halves=False,
    scale=8,
  )


def _colour() -> World:
  stride = 8
  side = motion.SIZE // stride
  return World(
    tokenize_batch=words.tokenize_batch,
    vocabulary=words.vocabulary_size(),
    num_tokens=words.NUM_TOKENS,
    held_out=_colour_held_out,
    latent_shape=(side, side, 16),
    spatial_stride=stride,
    temporal_stride=4,
    fps=float(motion.FPS),
    codec=None,
    halves=True,
    scale=4,
  )


MOVING_DIGITS = "moving_digits"
COLOUR_WORLD = "colour_world"
WORLDS: dict[str, World] = {
  MOVING_DIGITS: _digits(),
  COLOUR_WORLD: _colour(),
}
