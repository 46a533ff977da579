"""Tests of the judge's synthetic frames."""

import numpy as np
import pytest

from videomla_jax.small_world import judge_frames
from videomla_jax.small_world import world


@pytest.fixture
def sprites():
  return world.load_sprites("train")


def test_every_kind_occurs_with_its_content(sprites, seed):
  data = _draw(sprites, seed, num_frames=3000)
  names = np.array(judge_frames.KIND_NAMES)[data.kind]
  assert set(names) == set(judge_frames.KIND_NAMES)
  assert (data.content[names == "whole"] == judge_frames.WHOLE).all()
  assert (data.content[names == "copy"] == judge_frames.DOUBLED).all()
  assert (data.content[names == "half"] == judge_frames.FRAGMENT).all()
  assert 0.45 < (names == "whole").mean() < 0.55


def test_equal_seeds_give_equal_frames(sprites, seed):
  for a, b in zip(_draw(sprites, seed), _draw(sprites, seed)):
    np.testing.assert_array_equal(a, b)


def test_broken_digits_lose_a_quarter_of_their_ink(sprites, seed):
  images = sprites[0]
  for masks in judge_frames._MASKS.values():
    broken = judge_frames._break(np.random.default_rng(seed), images, masks)
    kept = broken.sum((1, 2)) / images.sum((1, 2))
    possible = np.einsum("nyx,myx->nm", images, masks).min(1)
    possible = possible / images.sum((1, 2))
    assert (kept[possible <= 0.75] <= 0.75 + 1e-6).all()
    assert kept.max() < 1


def test_second_digits_are_a_lattice_step_away_and_inside(seed):
  rng = np.random.default_rng(seed)
  first = judge_frames._corners(rng, 2000)
  second = judge_frames._second_corners(rng, first)
  assert (np.abs(first - second).max(1) >= 4).all()
  assert second.min() >= 0
  assert second.max() <= 16


def test_blur_does_not_leak_through_the_frame(seed):
  frames = np.zeros((500, 24, 24), np.float32)
  frames[:, 0, 5] = 1.0
  damaged = judge_frames._damage(np.random.default_rng(seed), frames)
  assert damaged[:, -1].mean() < 0.05  # noise alone


def test_clean_frames_hold_every_sprite_everywhere(sprites):
  frames, places = judge_frames.clean_frames(sprites[0][:3])
  assert frames.shape == (75, 24, 24, 1)
  assert places == 25
  np.testing.assert_array_equal(frames[25, :8, :8, 0], sprites[0][1])
  np.testing.assert_array_equal(frames[74, 16:, 16:, 0], sprites[0][2])


def test_warp_keeps_range_and_most_of_the_digit(sprites, seed):
  images = sprites[0]
  warped = judge_frames.warp(np.random.default_rng(seed), images)
  assert warped.min() >= 0
  assert warped.max() <= 1
  ratio = warped.sum() / images.sum()
  assert 0.85 < ratio < 1.15
  assert not np.array_equal(warped, images)


def _draw(sprites, seed, *, num_frames=300):
  rng = np.random.default_rng(seed)
  return judge_frames.synthesise(rng, *sprites, num_frames=num_frames)
