"""Colours are told apart."""

import itertools

import numpy as np
import pytest

from videomla_jax.small_world.colour import palette

FAR = 100.0


def others():
  """All colours that no digit has, graded ones row by row."""
  rows = palette.background_table(64).reshape(-1, 3)
  return np.concatenate([rows, [palette.WALL, palette.MORTAR]]).astype(float)


@pytest.mark.parametrize("pair", itertools.combinations(palette.COLOURS, 2))
def test_colours_of_digits_are_far_from_each_other(pair):
  one, two = (np.array(palette.COLOURS[name], float) for name in pair)
  assert np.linalg.norm(one - two) >= FAR


@pytest.mark.parametrize("name", palette.COLOURS)
def test_colours_of_digits_are_far_from_all_that_is_no_digit(name):
  away = np.linalg.norm(others() - palette.COLOURS[name], axis=1)
  assert away.min() >= FAR


@pytest.mark.parametrize("pair", itertools.permutations(palette.COLOURS, 2))
def test_edges_of_a_digit_look_like_no_other_digit(pair):
  """Mixtures with any background stay away from the other colours."""
  one, two = (np.array(palette.COLOURS[name], float) for name in pair)
  rows = np.unique(palette.background_table(64).reshape(-1, 3), axis=0)
  line = one - rows
  share = ((two - rows) * line).sum(1) / (line**2).sum(1)
  nearest = rows + np.clip(share, 0, 1)[:, None] * line
  assert np.linalg.norm(nearest - two, axis=1).min() >= 70


def test_plain_backgrounds_differ_from_each_other_and_from_the_wall():
  plain = [np.array(s.plain, float) for s in palette.BACKGROUNDS.values()]
  for one, two in itertools.combinations([*plain, palette.WALL], 2):
    assert np.linalg.norm(one - two) >= 35


def test_graded_backgrounds_go_from_one_shade_to_the_other():
  plain, graded = palette.background_table(64)
  for i, shades in enumerate(palette.BACKGROUNDS.values()):
    assert (plain[i] == shades.plain).all()
    np.testing.assert_array_equal(
      graded[i][[0, -1]], [shades.top, shades.bottom]
    )
    assert (np.diff(graded[i].astype(int), axis=0) >= 0).all()
