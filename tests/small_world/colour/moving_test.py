"""Tests of the measures of motion on real tracks."""

import numpy as np
import pytest

from tests.small_world.colour import faulty
from videomla_jax.small_world.colour import moving
from videomla_jax.small_world.colour import observe
from videomla_jax.small_world.colour import tracks


@pytest.fixture(scope="module")
def followed(reader):
  videos = faulty.scenes()[1][:1]
  return tracks.follow(observe.observe(videos), faulty.PROMPTS[:1], reader)[0]


def test_senses_and_speeds_are_the_prompts(followed):
  thing = followed.things[0]
  assert moving.asked_sense(thing).tolist() == [1, -1]  # up and right
  assert moving.wanted_speed(thing) == 20 / 16
  assert moving.direction(thing) == 1


def test_contacts_are_those_of_the_truth(followed):
  _, _, truth = faulty.scenes()
  turns = np.diff(np.sign(truth.velocity[0, :, 0]), axis=0) != 0
  frames = sorted(np.nonzero(turns)[0])
  found = moving.bounces(followed, followed.things[0])
  assert all(right for _, right in found)
  # Those near the ends of a clip cannot be told.
  for frame in frames:
    if 10 < frame < faulty.NUM_FRAMES - 14:
      assert min(abs(time - frame) for time, _ in found) <= 3
  assert len(found) <= len(frames)


def test_what_is_not_seen_is_not_measured(followed):
  thing = followed.things[0]
  never = thing._replace(whole=np.zeros_like(thing.whole))
  window = slice(0, faulty.NUM_FRAMES)
  assert np.isnan(moving.direction(never))
  values = moving.speeds(never, window) | moving.smoothness(never, window)
  assert np.isnan([*values.values()]).all()
