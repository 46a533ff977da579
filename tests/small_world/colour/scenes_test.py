"""Tests of random prompts and scenes."""

import functools

import jax
import numpy as np
import pytest

from videomla_jax.small_world import world as small_world
from videomla_jax.small_world.colour import digits
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import prompts
from videomla_jax.small_world.colour import scenes
from videomla_jax.small_world.colour import words

N = 1500


@functools.partial(jax.jit, static_argnames="split")
def draw(key, split):
  def one(key):
    of_prompt, of_scene = jax.random.split(key)
    choices = scenes.draw_choices(of_prompt, split)
    return choices, scenes.draw_scene(of_scene, choices, split)

  return jax.vmap(one)(jax.random.split(key, N))


@pytest.fixture(params=small_world.SPLITS)
def drawn(request, seed):
  choices, scene = jax.device_get(draw(jax.random.key(seed), request.param))
  said = [words.prompt_of(row) for row in choices]
  return request.param, said, scene


def test_prompts_show_pairs_of_their_split_only(drawn):
  split, said, _ = drawn
  allowed = set(prompts.split_pairs(split))
  shown = {pair for prompt in said for pair in prompt.pairs()}
  # 1500 draws of at most 60 pairs leave none out.
  assert shown == allowed
  other = {"train": "test", "test": "train"}[split]
  assert not shown & set(prompts.split_pairs(other))


def test_prompts_have_every_word_and_the_promised_shares(drawn):
  _, said, _ = drawn
  things = [thing for prompt in said for thing in prompt.things]
  assert {p.background for p in said} == {*prompts.BACKGROUNDS}
  assert {t.speed for t in things} == {*prompts.SPEEDS}
  assert {(t.vertical, t.horizontal) for t in things if t} == {
    (v, h)
    for v in ("", *prompts.VERTICAL)
    for h in ("", *prompts.HORIZONTAL)
    if v or h
  }
  shares = {
    "two": (np.mean([len(p.things) == 2 for p in said]), 1 / 2),
    "graded": (np.mean([p.style == "graded" for p in said]), 1 / 2),
    **{
      wall: (np.mean([p.wall == wall for p in said]), 1 / 6)
      for wall in prompts.WALLS
    },
  }
  for name, (share, expected) in shares.items():
    # Six standard errors fail once in half a billion.
    error = np.sqrt(expected * (1 - expected) / N)
    assert abs(share - expected) < 6 * error, name


def test_scenes_show_what_the_prompt_says(drawn):
  split, said, scene = drawn
  label = digits.load(split).label
  for i, prompt in enumerate(said):
    number = len(prompt.things)
    assert scene.present[i].tolist() == [True, number == 2]
    assert prompts.BACKGROUNDS[scene.background[i]] == prompt.background
    assert scene.graded[i] == (prompt.style == "graded")
    left, right = scene.course.wall[i]
    assert {
      "": (left, right) == (0, 0),
      "left": left == 0 < right,
      "right": left < right == motion.SIZE,
      "middle": 0 < left < right < motion.SIZE,
    }[prompt.wall]
    for k, thing in enumerate(prompt.things):
      assert scene.digit[i, k] == thing.digit == label[scene.sprite[i, k]]
      assert prompts.COLOURS[scene.colour[i, k]] == thing.colour
      pace = {"slow": 10, "fast": 20}[thing.speed]
      way = {"": 0, "left": -1, "up": -1, "right": 1, "down": 1}
      assert scene.course.velocity[i, k].tolist() == [
        pace * way[thing.horizontal],
        pace * way[thing.vertical],
      ]


def test_digits_begin_whole_and_apart(drawn):
  _, said, scene = drawn
  start, half = scene.course.start, scene.course.half
  edge = motion.SIZE * motion.UNIT
  assert (start >= half).all()
  assert (start <= edge - half).all()
  left, right = 16 * scene.course.wall.T[..., None]
  x, wide = start[..., 0], half[..., 0]
  assert ((x + wide <= left) | (x - wide >= right) | (left == right)).all()
  two = np.array([len(prompt.things) == 2 for prompt in said])
  distance = np.abs(start[:, 0] - start[:, 1])
  assert (distance > half.sum(1)).any(1)[two].all()


def test_most_digits_move_towards_a_wall(drawn):
  _, said, scene = drawn
  wall = np.array([prompt.wall != "" for prompt in said])
  middle = scene.course.wall.mean(1)[:, None] * 16
  towards = (middle - scene.course.start[..., 0]) * scene.course.velocity[
    ..., 0
  ] > 0
  share = towards[wall & scene.present[:, 1]].mean()
  assert 0.76 < share < 0.92  # 1/3 + 2/3 x 3/4 are expected


def test_all_handwriting_is_used(drawn):
  split, _, scene = drawn
  used = np.unique(scene.sprite[scene.present])
  # Of 1500 and 297; about 2250 draws.
  assert len(used) > {"train": 1000, "test": 250}[split]


def test_digits_move_as_said_before_they_bounce(drawn):
  """For half a second without a wall, and for a frame at least with one."""
  _, said, scene = drawn
  edge = motion.SIZE * motion.UNIT
  start, half = scene.course.start, scene.course.half
  velocity = scene.course.velocity
  for frames, chosen in (
    (8, np.array([p.wall == "" and len(p.things) == 1 for p in said])),
    (0, np.ones(N, bool)),
  ):
    there = start + frames * velocity
    inside = (there >= half) & (there <= edge - half)
    assert inside[chosen].all()
  assert (velocity[start == half] >= 0).all()
  assert (velocity[start == edge - half] <= 0).all()


def test_most_walls_ask_for_memory(seed):
  """Digits come back within a training clip, and often after the window."""

  @jax.jit
  @jax.vmap
  def hidden(key):
    of_prompt, of_scene = jax.random.split(key)
    choices = scenes.draw_choices(of_prompt, "train")
    scene = scenes.draw_scene(of_scene, choices, "train")
    path = motion.follow(scene.course, 81)
    return choices[words.WALL] > 0, path.hidden & scene.present

  wall, hidden = jax.device_get(
    hidden(jax.random.split(jax.random.key(seed), N))
  )
  back, late = [], []
  for gone in hidden[wall]:
    lengths = []
    for thing in (0, 1):
      padded = np.concatenate([[0], gone[:, thing], [1]])
      first = np.flatnonzero(np.diff(padded) == 1)
      last = np.flatnonzero(np.diff(padded) == -1)
      lengths += [b - a for a, b in zip(first, last)]
    back.append(len(lengths) > 0)
    late.append(max(lengths, default=0) > 28)  # 7 latent frames
  assert not hidden[~wall].any()
  assert np.mean(back) > 0.75
  assert np.mean(late) > 0.3
