"""Tests of the closed-form motion and the drawing."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from tests.small_world import step_by_step
from videomla_jax.small_world import prompts
from videomla_jax.small_world import world as world_lib

any_prompt = st.sampled_from(prompts.all_prompts())
any_split = st.sampled_from(world_lib.SPLITS)
any_seed = st.integers(0, 2**32 - 1)
signs = st.tuples(st.sampled_from((-1, 1)), st.sampled_from((-1, 1)))


@st.composite
def worlds(draw: st.DrawFn) -> world_lib.World:
  lattice = draw(st.sampled_from((1, 2, 4)))
  slow = lattice * draw(st.integers(1, 2))
  return world_lib.World(
    frame_size=8 + 2 * slow * draw(st.integers(1, 4)),
    lattice=lattice,
    slow=slow,
    fast=2 * slow,
  )


@hypothesis.given(
  world=worlds(),
  prompt=any_prompt,
  sign=signs,
  cells=st.tuples(st.integers(0, 8), st.integers(0, 8)),
  num_frames=st.integers(1, 60),
)
def test_positions_equal_a_step_by_step_simulation(
  world, prompt, sign, cells, num_frames
):
  speed = world.speed(prompt)
  start = tuple(c * speed % (world.reach + speed) for c in cells)
  path = world_lib.positions(prompt, start, sign, num_frames, world)
  moving = {
    "horizontal": (1, 0),
    "vertical": (0, 1),
    "diagonal": (1, 1),
  }[prompt.direction]
  for axis in (0, 1):
    velocity = speed * sign[axis] * moving[axis]
    expected = step_by_step.simulate(
      start[axis], velocity, num_frames, world.reach
    )
    assert path[:, axis].tolist() == expected


@hypothesis.given(
  world=worlds(), prompt=any_prompt, split=any_split, s=any_seed
)
def test_clips_stay_inside_the_frame_and_move_as_the_prompt_says(
  world, prompt, split, s
):
  rng = np.random.default_rng(s)
  clip = world_lib.sample_clip(rng, prompt, split, 9, world)
  steps = np.abs(np.diff(clip.positions, axis=0))
  speed = world.speed(prompt)
  assert clip.positions.min() >= 0
  assert clip.positions.max() <= world.reach
  assert not np.any(clip.positions % world.lattice)
  assert set(steps[:, 0]) == {0 if prompt.direction == "vertical" else speed}
  assert set(steps[:, 1]) == {0 if prompt.direction == "horizontal" else speed}


@hypothesis.given(prompt=any_prompt, split=any_split, s=any_seed)
def test_every_frame_shows_one_whole_digit_of_the_prompt(prompt, split, s):
  rng = np.random.default_rng(s)
  clip = world_lib.sample_clip(rng, prompt, split, 7)
  assert (clip.label, clip.prompt) == (prompt.digit, prompt)
  patches = [
    frame[y : y + 8, x : x + 8, 0]
    for frame, (x, y) in zip(clip.video, clip.positions, strict=True)
  ]
  images, labels = world_lib.load_sprites(split)
  known = np.rint(images[labels == prompt.digit] * 255).astype(np.uint8)
  assert np.any(np.all(known == patches[0], axis=(1, 2)))
  for frame, patch in zip(clip.video, patches, strict=True):
    np.testing.assert_array_equal(patch, patches[0])
    assert frame.sum() == patch.sum()  # nothing is drawn elsewhere


def test_positions_repeat_after_a_full_period_forever(seed):
  rng = np.random.default_rng(seed)
  for prompt in prompts.all_prompts():
    clip = world_lib.sample_clip(rng, prompt, "train", 240)
    period = 32 // world_lib.World().speed(prompt)
    np.testing.assert_array_equal(
      clip.positions[period:], clip.positions[:-period]
    )


def test_sprites_are_real_digits_split_without_overlap():
  train, train_labels = world_lib.load_sprites("train")
  test, test_labels = world_lib.load_sprites("test")
  assert train.shape == (1500, 8, 8)
  assert test.shape == (297, 8, 8)
  assert train.min() == 0.0
  assert train.max() == 1.0
  for labels in (train_labels, test_labels):
    assert set(labels) == set(range(10))
  rows = {image.tobytes() for image in train}
  assert not any(image.tobytes() in rows for image in test)


def test_clip_is_a_function_of_the_random_state(seed):
  first, again, other = (
    world_lib.sample_clip(np.random.default_rng(s), None, "train", 24)
    for s in (seed, seed, seed + 1)
  )
  np.testing.assert_array_equal(first.video, again.video)
  assert first.prompt == again.prompt
  assert not np.array_equal(first.video, other.video)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"frame_size": 8}, "frame_size=8 must exceed"),
    ({"slow": 3}, "slow=3 must divide"),
    ({"fast": 0}, "fast=0 must be positive"),
    ({"lattice": 5}, "lattice=5 must divide"),
    ({"sprite_size": 9}, "sprite_size=9 must be 8"),
    ({"fps": -1}, "fps=-1"),
  ],
)
def test_world_rejects_geometry_that_cannot_bounce(fields, message):
  with pytest.raises(ValueError, match=message):
    world_lib.World(**fields)


@pytest.mark.parametrize(
  ("start", "sign", "num_frames", "message"),
  [
    ((4, 0), (1, 1), 3, "start x=4 must be a multiple of 8"),
    ((0, 24), (1, 1), 3, "start y=24"),
    ((-8, 0), (1, 1), 3, "start x=-8"),
    ((0, 0), (0, 1), 3, "sign x=0"),
    ((0, 0), (1, 1), 0, "num_frames=0"),
  ],
)
def test_positions_reject_bad_starts(start, sign, num_frames, message):
  prompt = prompts.Prompt(digit=1, direction="diagonal", speed="fast")
  with pytest.raises(ValueError, match=message):
    world_lib.positions(prompt, start, sign, num_frames)


def test_unknown_split_is_an_error(seed):
  with pytest.raises(ValueError, match="split='valid'"):
    world_lib.load_sprites("valid")
  with pytest.raises(ValueError, match="split='valid'"):
    world_lib.sample_clip(np.random.default_rng(seed), None, "valid", 3)
