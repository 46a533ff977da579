"""Tests of which colour is followed, and of what goes on in another one."""

import numpy as np

from tests.small_world.colour import faulty
from videomla_jax.small_world.colour import observe
from videomla_jax.small_world.colour import prompts
from videomla_jax.small_world.colour import tracks


def _follow(scene, reader, prompt=faulty.PROMPTS[0]):
  video = faulty.draw(scene)[None, ::4]
  return tracks.follow(observe.observe(video), [prompt], reader)[0]


def test_a_digit_of_a_wrong_colour_is_followed(reader):
  scene = faulty.change(faulty.scenes()[0][0])
  scene.things[0].colour[:] = faulty.colour_of("blue")
  followed = _follow(scene, reader)
  thing = followed.things[0]
  assert set(thing.colour) == {prompts.COLOURS.index("blue")}
  assert thing.asked_colour == prompts.COLOURS.index("red")
  assert thing.seen.all()
  assert not any(other.seen.any() for other in followed.others)


def test_a_digit_goes_on_in_another_colour_until_its_own_returns(reader):
  scene = faulty.change(faulty.scenes()[0][0])
  scene.things[0].colour[40:80] = faulty.colour_of("blue")
  followed = _follow(scene, reader)
  blue = prompts.COLOURS.index("blue")
  names = [int(other.colour[0]) for other in followed.others]
  before = followed.things[0].seen
  np.testing.assert_array_equal(np.flatnonzero(~before), np.arange(10, 20))
  after = tracks.go_on(followed, 0, names.index(blue), 10)
  assert after.things[0].seen.all()
  assert (after.things[0].colour[10:20] == blue).all()
  assert not any(other.seen.any() for other in after.others)
  assert tracks.absences(after.things[0]) == []
  assert tracks.absences(followed.things[0]) == [(10, 20)]


def test_edges_are_how_near_a_digit_may_come(reader):
  scenes, _, truth = faulty.scenes()
  edges = _follow(scenes[0], reader).things[0].edges()
  half, offset = truth.half[0, 0], truth.offset[0, 0]
  # The rim that is not seen is 0.7 to 1.5 px wide.
  np.testing.assert_allclose(edges[0], half + offset, atol=0.6)
  np.testing.assert_allclose(edges[1], 64 - half + offset, atol=0.6)
