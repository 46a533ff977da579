"""Tokens by frame and in one row, and their rotations."""

import jax
import jax.numpy as jnp
import numpy as np

from tests import tolerances
from videomla_jax import shapes
from videomla_jax.models import token_frames
from videomla_jax.ops import rope

_GRID, _BANDS = shapes.Grid(rows=2, columns=3), rope.wan_bands(12)
_TOKENS = _GRID.tokens


def test_entries_that_are_rotated_apart_are_those_of_the_whole(seed):
  rng = np.random.default_rng(seed)
  frames = np.array([[0, 4, 5, 9, 10], [3, 4, 5, 6, 7]])
  angles = rope.rotation(jnp.asarray(frames), grid=_GRID, bands=_BANDS)
  x = jnp.asarray(rng.standard_normal((2, 5, _TOKENS, 2, 12)), jnp.float32)
  whole = token_frames.rotate(x, token_frames.by_frame(angles, _TOKENS))
  sizes = [1, 2, 2]
  entries = jnp.split(x, [1, 3], axis=1)
  apart = [
    token_frames.rotate(entry, token_frames.by_frame(own, _TOKENS))
    for entry, own in zip(
      entries,
      token_frames.cut(angles, [n * _TOKENS for n in sizes]),
      strict=True,
    )
  ]
  tolerances.assert_close(jnp.concatenate(apart, axis=1), whole)


def test_frames_and_tokens_keep_their_order(seed):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((2, 3, _TOKENS, 4))
  row = token_frames.joined(jnp.asarray(x))
  np.testing.assert_array_equal(row[1, _TOKENS + 2], np.float32(x[1, 1, 2]))
  pairs = rope.Rotation(row, row)
  back = token_frames.by_frame(pairs, _TOKENS)
  assert all(jax.tree.map(lambda y: bool((y == x.astype("f")).all()), back))
