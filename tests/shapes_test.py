"""Token arithmetic."""

import hypothesis
from hypothesis import strategies as st
import pytest

from videomla_jax import shapes


def test_token_grid_of_480p_has_1560_tokens():
  grid = shapes.token_grid(60, 104, patch=2)
  assert (grid.rows, grid.columns, grid.tokens) == (30, 52, 1560)


def test_token_index_follows_frame_row_column():
  grid = shapes.token_grid(60, 104, patch=2)
  # docs/method.md, section 2.12
  assert 2 * grid.tokens + 3 * grid.columns + 4 == 3280


@pytest.mark.parametrize("size", [(0, 2), (3, 2), (2, 1), (2, 5), (-2, 2)])
def test_token_grid_rejects_what_patches_do_not_tile(size):
  with pytest.raises(ValueError, match=r"multiple of the patch 2; crop"):
    shapes.token_grid(*size, patch=2)


@hypothesis.given(st.integers(0, 10**6), st.integers(1, 100))
def test_round_up_is_the_smallest_multiple_not_below(count, multiple):
  up = shapes.round_up(count, multiple)
  assert up % multiple == 0
  assert count <= up < count + multiple


@hypothesis.given(st.integers(1, 10**6), st.integers(1, 8))
def test_covering_latents_are_the_fewest_that_suffice(pixels, stride):
  latents = shapes.covering_latents(pixels, stride=stride)
  assert shapes.pixel_frames(latents, stride=stride) >= pixels
  fewer = shapes.pixel_frames(latents - 1, stride=stride)
  assert latents == 1 or fewer < pixels
