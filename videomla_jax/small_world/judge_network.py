"""The network that judges frames: which digit, and is it one whole digit.

Top-1 of ten digits forgives broken and doubled digits, so the judge has a
second head for the content of the frame.
"""

from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from videomla_jax.small_world import world

_BATCH = 2048


class Judgement(NamedTuple):
  """Holds what the judge says about every frame of every video.

  Attributes:
    identity: Most likely digit, 0..9.
    identity_probability: Probability of that digit.
    content: Class 0..2, see `judge_frames.CONTENTS`.
  """

  identity: Int[np.ndarray, "V T"]
  identity_probability: Float[np.ndarray, "V T"]
  content: Int[np.ndarray, "V T"]


class Judge(nnx.Module):
  """Tells identity from the best 8x8 crop, content from frame and crop."""

  def __init__(self, *, dropout: float, rngs: nnx.Rngs) -> None:
    self.crop1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
    self.crop2 = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)
    self.crop3 = nnx.Conv(64, 64, (3, 3), rngs=rngs)
    self.crop_hidden = nnx.Linear(4 * 4 * 64, 128, rngs=rngs)
    self.identity = nnx.Linear(128, 10, rngs=rngs)
    self.frame1 = nnx.Conv(1, 16, (5, 5), strides=2, rngs=rngs)
    self.frame2 = nnx.Conv(16, 48, (3, 3), strides=2, rngs=rngs)
    # A window has 2x2 cells of 4 px, so there is one output for each lattice
    # position.
    self.frame3 = nnx.Conv(48, 64, (2, 2), padding="VALID", rngs=rngs)
    self.content_hidden = nnx.Linear(2 * 64 + 128, 64, rngs=rngs)
    self.content = nnx.Linear(64, 3, rngs=rngs)
    self.drop = nnx.Dropout(dropout)

  def __call__(
    self,
    frames: Float[Array, "n 24 24 1"],
    *,
    rngs: nnx.Rngs | None = None,
  ) -> tuple[Float[Array, "n 10"], Float[Array, "n 3"]]:
    """Returns identity and content logits of frames in [0, 1].

    Args:
      frames: Grey frames.
      rngs: Source of dropout in training; None switches dropout off.
    """

    def drop(x: Array) -> Array:
      return self.drop(x, deterministic=rngs is None, rngs=rngs)

    x = jax.nn.gelu(self.crop1(_best_crop(frames)))
    x = jax.nn.gelu(self.crop3(jax.nn.gelu(self.crop2(x))))
    shape = jax.nn.gelu(self.crop_hidden(drop(x.reshape(len(x), -1))))
    y = jax.nn.gelu(self.frame2(jax.nn.gelu(self.frame1(frames))))
    y = jax.nn.gelu(self.frame3(y)).reshape(len(y), -1, 64)
    features = jnp.concatenate([y.max(1), y.sum(1) / 5, shape], axis=-1)
    hidden = jax.nn.gelu(self.content_hidden(features))
    return self.identity(drop(shape)), self.content(hidden)


def judge_frames(
  judge: Judge, videos: Float[np.ndarray, "V T 24 24 1"]
) -> Judgement:
  """Judges every frame of every video on its own.

  Args:
    judge: A trained judge.
    videos: Grey videos in [0, 1].

  Returns:
    Digit 0..9, its probability, and content class 0..2.
  """
  frames = np.asarray(videos, np.float32).reshape(-1, *videos.shape[2:])
  batches = [
    _judge_batch(judge, frames[i : i + _BATCH], size=min(len(frames), _BATCH))
    for i in range(0, len(frames), _BATCH)
  ]
  shape = videos.shape[:2]
  return Judgement(*(np.concatenate(p).reshape(shape) for p in zip(*batches)))


def _best_crop(frames: Float[Array, "n 24 24 1"]) -> Float[Array, "n 8 8 1"]:
  """Cuts out the box of the sprite's size with the most ink.

  Boxes with almost the same ink, as a thin digit has, are averaged; they may
  stand out of the frame, so that a digit looks the same at a wall.
  """
  size = world.World().sprite_size
  margin = size // 2
  frames = jnp.pad(frames, ((0, 0), (margin,) * 2, (margin,) * 2, (0, 0)))
  # Fainter pixels are noise, which would pull the box.
  ink = jnp.where(frames > 0.2, frames, 0.0)[..., 0]
  sums = jax.lax.reduce_window(
    ink, 0.0, jax.lax.add, (1, size, size), (1, 1, 1), "VALID"
  )
  # Boxes within 3 % of the best are averaged: a thin digit fills several.
  best = sums >= 0.97 * sums.max((1, 2), keepdims=True)
  pixel = jnp.arange(sums.shape[-1])
  count = best.sum((1, 2))
  row = jnp.rint((best.sum(2) @ pixel) / count).astype(jnp.int32)
  column = jnp.rint((best.sum(1) @ pixel) / count).astype(jnp.int32)

  def crop(frame: Array, row: Array, column: Array) -> Array:
    return jax.lax.dynamic_slice(frame, (row, column, 0), (size, size, 1))

  return jax.vmap(crop)(frames, row, column)


@jax.jit
def _apply(
  judge: Judge, frames: Float[Array, "n 24 24 1"]
) -> tuple[Int[Array, "n"], Float[Array, "n"], Int[Array, "n"]]:
  """Returns identity, its probability and content of each frame."""
  identity, content = judge(frames)
  probability = jax.nn.softmax(identity).max(-1)
  return identity.argmax(-1), probability, content.argmax(-1)


def _judge_batch(
  judge: Judge, frames: Float[np.ndarray, "n 24 24 1"], *, size: int
) -> tuple[np.ndarray, ...]:
  """Judges at most `size` frames, padded so that one program serves all."""
  # The last batch is shorter, and another shape would compile anew.
  padding = [(0, size - len(frames))] + [(0, 0)] * 3
  outputs = _apply(judge, jax.device_put(np.pad(frames, padding)))
  return tuple(out[: len(frames)] for out in jax.device_get(outputs))
