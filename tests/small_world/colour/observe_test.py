"""Tests of what is seen in single frames, against the truth of real clips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import observe
from videomla_jax.small_world.colour import palette
from videomla_jax.small_world.colour import world


@pytest.fixture(scope="module")
def clips():
  key = jax.random.key(11)
  drawn = world.sample(key, size=6, num_frames=32, split="test")
  return jax.device_get(drawn)


@pytest.fixture(scope="module")
def seen(clips):
  return observe.observe(clips.video)


def test_centroids_are_those_of_the_truth(clips, seen):
  truth, count = clips.truth, 0
  for i, k in zip(*np.nonzero(truth.colour >= 0)):
    colour = truth.colour[i, k]
    whole = (truth.visible[i, :, k] == 1) & ~seen.touched[i, :, colour]
    place = truth.position[i, :, k] + truth.offset[i, k]
    away = seen.centre[i, :, colour] - place
    # Faint edges are left out, on one side more than on the other.
    assert (np.hypot(*away[whole].T) < 0.3).all()
    reach = np.diff(seen.box[i, :, colour].reshape(-1, 2, 2), axis=1)[:, 0] / 2
    rim = truth.half[i, k] - reach[whole]
    assert ((rim > 0) & (rim < 2.1)).all()
    count += whole.sum()
  assert count > 50


def test_absent_colours_are_not_seen(clips, seen):
  for i, there in enumerate(clips.truth.colour):
    absent = [k for k in range(len(palette.COLOURS)) if k not in there]
    # An edge between two digits can look like a third colour.
    assert seen.ink[i][:, absent].max() < 30
  assert seen.extra.max() < 5
  hidden = np.nonzero(clips.truth.hidden)
  for i, t, k in zip(*hidden):
    assert seen.ink[i, t, clips.truth.colour[i, k]] == 0


def test_walls_and_backgrounds_are_those_of_the_truth(clips, seen):
  truth = clips.truth
  np.testing.assert_array_equal(
    seen.wall, np.broadcast_to(truth.wall[:, None], seen.wall.shape)
  )
  number = truth.background + len(palette.BACKGROUNDS) * truth.graded
  assert (seen.background == number[:, None]).all()
  for i, k in enumerate(number):
    assert seen.error[i, :, k].max() < 1
    assert np.delete(seen.error[i], k, 1).min() > 5


def test_a_background_may_be_shifted(clips):
  video = clips.video[:1].astype(np.float32)
  shifted = np.clip(video + 8, 0, 255) / 255
  first, second = observe.observe(clips.video[:1]), observe.observe(shifted)
  both = (first.ink > observe.MIN_INK) & (second.ink > observe.MIN_INK)
  assert both.sum() >= 32
  np.testing.assert_allclose(first.centre[both], second.centre[both], atol=0.2)
  number = first.background[0, 0]
  assert second.error[0, :, number] == pytest.approx(8, abs=0.5)


def test_frames_do_not_depend_on_their_neighbours(clips, seen):
  alone = observe.observe(clips.video[2:3, 5:9])
  for name, field in alone._asdict().items():
    np.testing.assert_array_equal(field[0], getattr(seen, name)[2, 5:9], name)


def test_crop_has_its_point_in_the_middle():
  cover = np.zeros((motion.SIZE,) * 2, np.float32)
  cover[3, 60] = 1
  crop = np.asarray(observe.cut(jnp.asarray(cover), jnp.array([60.4, 3.6])))
  height, width = observe.CROP
  assert crop.shape == observe.CROP
  assert np.argwhere(crop).tolist() == [[height // 2 - 1, width // 2]]
