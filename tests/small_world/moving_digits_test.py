"""Tests of the closed-form motion, the drawing and the builder."""

import os

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from videomla_jax.small_world import moving_digits
from videomla_jax.small_world import prompts

any_prompt = st.sampled_from(prompts.all_prompts())
any_split = st.sampled_from(moving_digits.SPLITS)
any_seed = st.integers(0, 2**32 - 1)
signs = st.tuples(st.sampled_from((-1, 1)), st.sampled_from((-1, 1)))


@st.composite
def worlds(draw: st.DrawFn) -> moving_digits.World:
  lattice = draw(st.sampled_from((1, 2, 4)))
  slow = lattice * draw(st.integers(1, 2))
  return moving_digits.World(
    frame_size=8 + 2 * slow * draw(st.integers(1, 4)),
    lattice=lattice,
    slow=slow,
    fast=2 * slow,
  )


def simulate(start, velocity, num_frames, reach):
  """Moves one axis pixel by pixel and turns round at the walls."""
  position, path = start, []
  step = int(np.sign(velocity))
  for _ in range(num_frames):
    path.append(position)
    for _ in range(abs(velocity)):
      if not 0 <= position + step <= reach:
        step = -step
      position += step
  return path


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
  path = moving_digits.positions(prompt, start, sign, num_frames, world)
  moving = {
    "horizontal": (1, 0),
    "vertical": (0, 1),
    "diagonal": (1, 1),
  }[prompt.direction]
  for axis in (0, 1):
    velocity = speed * sign[axis] * moving[axis]
    expected = simulate(start[axis], velocity, num_frames, world.reach)
    assert path[:, axis].tolist() == expected


@hypothesis.given(
  world=worlds(), prompt=any_prompt, split=any_split, s=any_seed
)
def test_clips_stay_inside_the_frame_and_move_as_the_prompt_says(
  world, prompt, split, s
):
  rng = np.random.default_rng(s)
  clip = moving_digits.sample_clip(rng, prompt, split, 9, world)
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
  clip = moving_digits.sample_clip(rng, prompt, split, 7)
  assert (clip.label, clip.prompt) == (prompt.digit, prompt)
  patches = [
    frame[y : y + 8, x : x + 8, 0]
    for frame, (x, y) in zip(clip.video, clip.positions, strict=True)
  ]
  images, labels = moving_digits.load_sprites(split)
  known = np.rint(images[labels == prompt.digit] * 255).astype(np.uint8)
  assert np.any(np.all(known == patches[0], axis=(1, 2)))
  for frame, patch in zip(clip.video, patches, strict=True):
    np.testing.assert_array_equal(patch, patches[0])
    assert frame.sum() == patch.sum()  # nothing is drawn elsewhere


def test_positions_repeat_after_a_full_period_forever(seed):
  rng = np.random.default_rng(seed)
  for prompt in prompts.all_prompts():
    clip = moving_digits.sample_clip(rng, prompt, "train", 240)
    period = 32 // moving_digits.World().speed(prompt)
    np.testing.assert_array_equal(
      clip.positions[period:], clip.positions[:-period]
    )


def test_sprites_are_real_digits_split_without_overlap():
  train, train_labels = moving_digits.load_sprites("train")
  test, test_labels = moving_digits.load_sprites("test")
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
    moving_digits.sample_clip(np.random.default_rng(s), None, "train", 24)
    for s in (seed, seed, seed + 1)
  )
  np.testing.assert_array_equal(first.video, again.video)
  assert first.prompt == again.prompt
  assert not np.array_equal(first.video, other.video)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """A small data set and its folder."""
  folder = tmp_path_factory.mktemp("built")
  config = moving_digits.MovingDigitsConfig(
    num_clips=150, num_test_clips=40, num_frames=5, seed=3
  )
  builder = moving_digits.MovingDigits(data_dir=str(folder), config=config)
  builder.download_and_prepare()
  return builder, folder


def test_built_splits_keep_to_their_prompts_and_handwriting(built):
  builder, _ = built
  num_clips = {"train": 150, "test": 40}
  for split in moving_digits.SPLITS:
    allowed = set(moving_digits.split_prompts(split))
    images, _ = moving_digits.load_sprites(split)
    known = {np.rint(image * 255).astype("u1").tobytes() for image in images}
    source = builder.as_data_source(split)
    assert len(source) == num_clips[split]
    for record in source:
      prompt = prompts.parse(record["prompt"].decode())
      assert prompt in allowed
      assert prompt.digit == record["label"]
      x, y = record["positions"][0]
      assert record["video"][0, y : y + 8, x : x + 8].tobytes() in known


def test_building_leaves_no_temporary_folder(built):
  builder, folder = built
  parent = os.path.dirname(builder.data_dir)
  assert os.listdir(parent) == ["1.0.0"]
  assert str(folder) in parent


def test_rebuilding_gives_equal_records(built, tmp_path):
  builder, _ = built
  again = moving_digits.MovingDigits(
    data_dir=str(tmp_path), config=builder.builder_config
  )
  again.download_and_prepare()
  for split in moving_digits.SPLITS:
    pairs = zip(
      builder.as_data_source(split), again.as_data_source(split), strict=True
    )
    for one, two in pairs:
      assert one["prompt"] == two["prompt"]
      np.testing.assert_array_equal(one["video"], two["video"])
      np.testing.assert_array_equal(one["positions"], two["positions"])


def test_failed_build_leaves_no_data_set(tmp_path, monkeypatch):
  config = moving_digits.MovingDigitsConfig(num_clips=9, num_test_clips=2)
  builder = moving_digits.MovingDigits(data_dir=str(tmp_path), config=config)

  def fail(*args):
    raise OSError("disk full")

  monkeypatch.setattr(moving_digits, "sample_clip", fail)
  with pytest.raises(OSError, match="disk full"):
    builder.download_and_prepare()
  assert not os.path.exists(builder.data_dir)
  assert not os.listdir(os.path.dirname(builder.data_dir))


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
    moving_digits.World(**fields)


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
    moving_digits.positions(prompt, start, sign, num_frames)


@pytest.mark.parametrize(
  "field", ["num_clips", "num_test_clips", "num_frames", "seed"]
)
def test_config_rejects_nonsense(field):
  with pytest.raises(ValueError, match=f"{field}=-1"):
    moving_digits.MovingDigitsConfig(**{field: -1})


def test_unknown_split_is_an_error(seed):
  with pytest.raises(ValueError, match="split='valid'"):
    moving_digits.load_sprites("valid")
  with pytest.raises(ValueError, match="split='valid'"):
    moving_digits.sample_clip(np.random.default_rng(seed), None, "valid", 3)
