"""Tests of absences behind the wall: what is due when, and what is excused."""

import numpy as np
import pytest

from tests.small_world.colour import faulty
from videomla_jax.small_world.colour import memory
from videomla_jax.small_world.colour import observe
from videomla_jax.small_world.colour import tracks


@pytest.fixture(scope="module")
def real():
  return faulty.scenes()


def _follow(video, number, reader):
  seen = observe.observe(video[None])
  return tracks.follow(seen, [faulty.PROMPTS[number]], reader)[0]


@pytest.mark.parametrize("name", ["middle", "left"])
def test_absences_of_real_clips_are_those_of_the_truth(real, reader, name):
  _, videos, truth = real
  number = faulty.NAMES.index(name)
  events, _ = memory.events(_follow(videos[number], number, reader))
  hidden = truth.hidden[number, :, 0]
  first = int(hidden.argmax())
  length = int((~hidden[first:]).argmax())
  assert len(events) == 1  # the second one ends after the video
  event = events[0]
  assert event.right == 1
  assert abs(event.hidden - length) <= 2
  # It is whole again when its box has left the wall.
  visible = truth.visible[number, first + length :, 0]
  assert abs(event.due - first - length - int((visible == 1).argmax())) <= 4
  assert event.first <= first + 1
  assert event.returned >= first + length - 1


def test_digits_behind_the_wall_are_excused(real, reader):
  _, videos, truth = real
  number = faulty.NAMES.index("left")
  events, followed = memory.events(_follow(videos[number], number, reader))
  excused = memory.excused(followed, events)
  unseen = ~followed.things[0].seen
  np.testing.assert_array_equal(excused[0], unseen)
  assert (excused[0] | ~truth.hidden[number, :, 0]).all()


def test_a_digit_is_excused_until_it_is_late(real, reader):
  scenes, _, _ = real
  number = faulty.NAMES.index("middle")
  scene = faulty.change(scenes[number])
  first = int(scene.hidden[:, 0].argmax())
  scene.things[0].there[first:] = False
  events, followed = memory.events(_follow(faulty.draw(scene), number, reader))
  assert [x.out for x in events] == [0]
  excused = memory.excused(followed, events)[0]
  assert excused[first + 2 : events[0].due].all()
  assert not excused[events[0].due + 17 :].any()


def test_without_a_wall_nothing_is_remembered(real, reader):
  _, videos, _ = real
  events, followed = memory.events(_follow(videos[1], 1, reader))
  assert events == []
  assert not memory.excused(followed, events).any()


def test_a_right_event_needs_all_to_be_right_and_known():
  event = memory.Event(0, 5, 30, 28, 20, 1.0, 1.0, 1.0, 1.0, 0.3, 1.0)
  assert event.right == 1
  for name in ("out", "colour", "same", "identity", "place"):
    assert event._replace(**{name: 0.0}).right == 0
  assert np.isnan(event._replace(same=float("nan")).right)
  assert event._replace(same=float("nan"), place=0.0).right == 0
