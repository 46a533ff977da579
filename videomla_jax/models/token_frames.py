"""Tokens by frame and in one row, and their rotations.

Entries of a cache are `[B, T, P, ...]`, kernels of attention take `[B, S, ...]`
with S = T P, and so do angles.
"""

from collections.abc import Sequence
import itertools

from einops import rearrange
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from videomla_jax.ops import rope


def joined(x: Num[Array, "B T P ..."]) -> Num[Array, "B S ..."]:
  """Joins frames and tokens of a frame."""
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def by_frame(angles: rope.Rotation, tokens: int) -> rope.Rotation:
  """Separates frames and tokens of angles: `[B, T, P, pairs]`.

  Args:
    angles: Rotation of each token, `[B, S, pairs]`.
    tokens: P, tokens of a frame.
  """
  return jax.tree.map(
    lambda a: rearrange(a, "B (T P) i -> B T P i", P=tokens), angles
  )


def rotate(
  x: Float[Array, "B T P N D"], angles: rope.Rotation
) -> Float[Array, "B S N D"]:
  """Rotates tokens and joins their frames.

  Args:
    x: Queries or keys.
    angles: Their rotations by frame.
  """
  return rope.rotate(joined(x), jax.tree.map(joined, angles))


def cut(angles: rope.Rotation, sizes: Sequence[int]) -> list[rope.Rotation]:
  """Returns the rotations of each entry of a context.

  Args:
    angles: Rotations of all tokens, `[B, S, pairs]`.
    sizes: Tokens of each entry, which add up to S.
  """
  ends = list(itertools.accumulate(sizes))[:-1]
  parts = (jnp.split(a, ends, axis=1) for a in angles)
  return [rope.Rotation(*pair) for pair in zip(*parts, strict=True)]
