"""3D RoPE: Wan's bands, their selection, relativity."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from videomla_jax import shapes
from videomla_jax.ops import rope

GRID = shapes.Grid(rows=3, columns=2)
BANDS = rope.wan_bands(16)


@jax.jit
def _scores(query, key, query_frame, key_frame):
  """Logits of rotated queries against rotated keys."""
  rotated = [
    rope.rotate(x, rope.rotation(frame, grid=GRID, bands=BANDS))
    for x, frame in ((query, query_frame), (key, key_frame))
  ]
  return jnp.einsum("BLND,BSND->BNLS", *rotated)


def _inputs(seed, frames=4):
  rng = np.random.default_rng(seed)
  shape = (2, frames * GRID.tokens, 3, 16)
  draw = lambda: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  frame = jnp.asarray(rng.integers(0, 20, (2, frames)), jnp.int32)
  return draw(), draw(), frame, frame[:, ::-1]


def test_bands_match_the_published_frequencies():
  bands = rope.wan_bands(128)  # docs/method.md, section 2.12
  assert [len(b) for b in bands] == [22, 21, 21]
  np.testing.assert_allclose(
    bands.frame[[0, 1, 2, 21]], [1, 0.657933, 0.432876, 0.000152], atol=5e-7
  )
  for band in (bands.row, bands.column):
    np.testing.assert_allclose(
      band[[0, 1, 2, 20]], [1, 0.644947, 0.415956, 0.000155], atol=5e-7
    )


def test_selection_of_32_channels_takes_the_highest_wan_frequencies():
  whole, taken = rope.wan_bands(128), rope.wan_bands(128, rope_dim=32)
  assert [len(b) for b in taken] == [6, 5, 5]
  for all_of, some in zip(whole, taken):
    np.testing.assert_array_equal(all_of[: len(some)], some)


@pytest.mark.parametrize("dim", range(2, 130, 2))
def test_axis_pairs_use_every_channel(dim):
  frame, row, column = rope.axis_pairs(dim)
  assert frame + row + column == dim // 2
  assert row == column <= frame


@pytest.mark.parametrize(
  ("head_dim", "rope_dim"), [(15, None), (16, 7), (16, 0), (16, 18), (16, -2)]
)
def test_bad_split_is_refused_with_the_way_out(head_dim, rope_dim):
  with pytest.raises(ValueError, match="must be even and between 2 and"):
    rope.wan_bands(head_dim, rope_dim=rope_dim)


def test_split_with_more_frame_pairs_than_the_head_has_is_refused():
  # 10 channels want 3 frame pairs of a head whose 12 channels have 2.
  assert rope.axis_pairs(10)[0] > rope.axis_pairs(12)[0]
  with pytest.raises(ValueError, match="use a smaller rope_dim"):
    rope.wan_bands(12, rope_dim=10)


@pytest.mark.parametrize("offset", [1, 17, 300])
def test_common_frame_offset_leaves_scores_unchanged(seed, offset):
  query, key, query_frame, key_frame = _inputs(seed)
  moved = _scores(query, key, query_frame + offset, key_frame + offset)
  same = _scores(query, key, query_frame, key_frame)
  # An angle of 300 rad has 3e-5 rad of float32 rounding.
  kind = "float32" if offset < 100 else "float32_deep"
  tolerances.assert_close(moved, same, kind)


def test_offset_of_keys_alone_changes_scores(seed):
  query, key, query_frame, key_frame = _inputs(seed)
  moved = _scores(query, key, query_frame, key_frame + 1)
  same = _scores(query, key, query_frame, key_frame)
  assert tolerances.relative_error(moved, same) > 1e-2


def test_rotation_keeps_the_length_of_every_pair(seed):
  query, _, frame, _ = _inputs(seed)
  turned = rope.rotate(query, rope.rotation(frame, grid=GRID, bands=BANDS))
  lengths = [
    np.hypot(x[..., ::2], x[..., 1::2]) for x in (np.array(turned), query)
  ]
  tolerances.assert_close(*lengths)


def test_rotation_turns_adjacent_channels_by_frame_row_and_column(seed):
  rng = np.random.default_rng(seed)
  frame = int(rng.integers(0, 50))
  x = rng.standard_normal((1, GRID.tokens, 1, 16)).astype(np.float32)
  rotation = rope.rotation(jnp.asarray([[frame]]), grid=GRID, bands=BANDS)
  out = np.asarray(rope.rotate(jnp.asarray(x), rotation))
  expected = np.empty_like(x)
  for token in range(GRID.tokens):
    row, column = divmod(token, GRID.columns)
    angles = [
      *(frame * BANDS.frame),
      *(row * BANDS.row),
      *(column * BANDS.column),
    ]
    for i, angle in enumerate(angles):
      pair = complex(x[0, token, 0, 2 * i], x[0, token, 0, 2 * i + 1])
      pair *= complex(math.cos(angle), math.sin(angle))
      expected[0, token, 0, 2 * i : 2 * i + 2] = pair.real, pair.imag
  tolerances.assert_close(out, expected)


def test_rotation_has_no_length_limit():
  rotation = rope.rotation(jnp.asarray([[100_000]]), grid=GRID, bands=BANDS)
  assert np.isfinite(rotation.cos).all()
  assert np.ptp(np.asarray(rotation.cos)) > 0


def test_rotate_keeps_the_dtype(seed):
  query, _, frame, _ = _inputs(seed)
  rotation = rope.rotation(frame, grid=GRID, bands=BANDS)
  half = rope.rotate(query.astype(jnp.bfloat16), rotation)
  assert half.dtype == jnp.bfloat16
  tolerances.assert_close(half, rope.rotate(query, rotation), "bfloat16")


@pytest.mark.parametrize("frame", [0, 900, 100_000])
def test_rotation_is_that_of_float64_at_any_frame(frame: int) -> None:
  bands, grid = rope.wan_bands(128), shapes.Grid(rows=30, columns=52)
  turned = rope.rotation(jnp.asarray([[frame]]), grid=grid, bands=bands)
  row, column = np.divmod(np.arange(grid.tokens)[:, None], grid.columns)
  parts = (
    frame * bands.frame + 0 * row,
    row * bands.row,
    column * bands.column,
  )
  angle = np.concatenate(parts, axis=1)
  assert np.abs(np.asarray(turned.cos[0], np.float64) - np.cos(angle)).max() < (
    1.5e-7
  )
  assert np.abs(np.asarray(turned.sin[0], np.float64) - np.sin(angle)).max() < (
    1.5e-7
  )


def test_entries_that_are_rotated_apart_are_those_of_the_whole(seed):
  rng = np.random.default_rng(seed)
  tokens, sizes = GRID.tokens, [1, 2, 2]
  frames = jnp.asarray([[0, 4, 5, 9, 10], [3, 4, 5, 6, 7]])
  angles = rope.rotation(frames, grid=GRID, bands=BANDS)
  x = jnp.asarray(rng.standard_normal((2, 5, tokens, 3, 16)), jnp.float32)
  whole = rope.rotate_frames(x, rope.by_frame(angles, tokens))
  row = x.reshape(2, -1, 3, 16)
  np.testing.assert_array_equal(whole, rope.rotate(row, angles))
  entries = jnp.split(x, np.cumsum(sizes)[:-1], axis=1)
  each = rope.cut(angles, [n * tokens for n in sizes])
  apart = [
    rope.rotate_frames(entry, rope.by_frame(own, tokens))
    for entry, own in zip(entries, each, strict=True)
  ]
  np.testing.assert_array_equal(jnp.concatenate(apart, axis=1), whole)
