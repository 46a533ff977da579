"""Clips equal their truth, pixel by pixel."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from tests.tolerances import assert_close
from videomla_jax.small_world import world as small_world
from videomla_jax.small_world.colour import digits
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import palette
from videomla_jax.small_world.colour import prompts
from videomla_jax.small_world.colour import words
from videomla_jax.small_world.colour import world

B, T = 12, 97
any_seed = st.integers(0, 2**31 - 1)
splits = st.sampled_from(small_world.SPLITS)

_sample = jax.jit(world.sample, static_argnames=("size", "num_frames", "split"))
_batch = jax.jit(
  world.batch,
  static_argnames=(
    "size",
    "num_frames",
    "split",
    "prompt_dropout",
    "word_dropout",
  ),
)


def draw(seed, split="train", size=B, num_frames=T):
  clips = _sample(
    jax.random.key(seed), size=size, num_frames=num_frames, split=split
  )
  return jax.device_get(clips)


def things(clips):
  """Clip and place of every digit that there is."""
  return zip(*np.nonzero(clips.truth.digit >= 0))


def ground(clips, clip):
  """The empty background of a clip, as floats."""
  truth = clips.truth
  table = palette.background_table(motion.SIZE)
  rows = table[int(truth.graded[clip]), truth.background[clip]]
  return np.broadcast_to(rows[:, None].astype(float), (64, 64, 3))


def box(truth, clip, frame, thing, margin=0):
  """Rows and columns of a digit's box."""
  middle, half = truth.position[clip, frame, thing], truth.half[clip, thing]
  low = np.floor(middle - half).astype(int) - margin
  high = np.ceil(middle + half).astype(int) + margin
  low = np.maximum(low, 0)
  return np.s_[low[1] : high[1], low[0] : high[0]]


def cover_of(clips, clip, frame, thing):
  """How much of each pixel has a digit's colour, in its box; 0 elsewhere."""
  empty = ground(clips, clip)
  colour = np.array([*palette.COLOURS.values()], float)
  away = colour[clips.truth.colour[clip, thing]] - empty
  change = clips.video[clip, frame].astype(float) - empty
  share = np.zeros((64, 64))
  at = box(clips.truth, clip, frame, thing)
  share[at] = ((change * away).sum(-1) / (away**2).sum(-1))[at]
  return share


def alone(truth, clip, frame, thing):
  """Whether nothing else, wall included, comes near a digit's box."""
  middle, half = truth.position[clip, frame], truth.half[clip]
  left, right = truth.wall[clip]
  x, wide = middle[thing, 0], half[thing, 0]
  if left < right and x + wide > left and x - wide < right:
    return False
  if (truth.digit[clip] < 0).any():
    return True
  return (np.abs(middle[0] - middle[1]) > half.sum(0) + 1).any()


@hypothesis.settings(max_examples=5)
@hypothesis.given(s=any_seed, split=splits)
def test_visible_digits_are_where_the_truth_says(s, split):
  clips = draw(s, split)
  truth, count = clips.truth, 0
  ink = digits.load(split).ink.sum((1, 2)) / 255 / 4
  pixel = np.arange(64) + 0.5
  for clip, thing in things(clips):
    for frame in range(0, T, 5):
      if not alone(truth, clip, frame, thing):
        continue
      cover = cover_of(clips, clip, frame, thing)
      total = cover.sum()
      found = np.array([cover.sum(0) @ pixel, cover.sum(1) @ pixel]) / total
      centroid = truth.position[clip, frame, thing] + truth.offset[clip, thing]
      # Pixels are whole numbers of 255, a hundred of them with ink.
      assert np.abs(found - centroid).max() < 0.06
      assert total == pytest.approx(ink[truth.sprite[clip, thing]], rel=0.02)
      assert truth.visible[clip, frame, thing] == 1
      count += 1
  assert count > 10


@hypothesis.settings(max_examples=5)
@hypothesis.given(s=any_seed, split=splits)
def test_digits_have_their_colour_and_their_label(s, split):
  clips = draw(s, split)
  truth = clips.truth
  label = digits.load(split).label
  colours = palette.colour_table()
  for clip, thing in things(clips):
    assert label[truth.sprite[clip, thing]] == truth.digit[clip, thing]
    colour = colours[truth.colour[clip, thing]]
    # Frame 0 shows every digit whole, and some pixels are nearly full of ink.
    inside = clips.video[clip, 0][box(truth, clip, 0, thing)].astype(int)
    near = np.abs(inside - colour).max(-1) <= 8
    assert near.any()


@hypothesis.settings(max_examples=5)
@hypothesis.given(s=any_seed, split=splits)
def test_hidden_means_no_pixel_of_the_colour(s, split):
  clips = draw(s, split)
  truth = clips.truth
  for clip, thing in things(clips):
    colour = palette.colour_table()[truth.colour[clip, thing]].astype(float)
    away = np.linalg.norm(clips.video[clip] - colour, axis=-1).min((1, 2))
    gone = truth.hidden[clip, :, thing]
    assert (truth.visible[clip, gone, thing] == 0).all()
    # Edges of the other digit mix its colour with the background.
    assert (away[gone] > 60).all()
    left, right = truth.wall[clip]
    assert not gone.any() or left < right


@hypothesis.settings(max_examples=5)
@hypothesis.given(s=any_seed, split=splits)
def test_a_hidden_digit_changes_no_pixel(s, split):
  """A picture is made of background, wall and what the truth calls visible."""
  clips = draw(s, split)
  truth = clips.truth
  for clip in range(B):
    covered = truth.visible[clip].sum(1) == 0
    empty = np.broadcast_to(ground(clips, clip), (T, 64, 64, 3)).copy()
    left, right = truth.wall[clip].astype(int)
    shown = clips.video[clip].astype(float)
    outside = np.ones(64, bool)
    outside[left:right] = False
    np.testing.assert_array_equal(
      shown[covered][:, :, outside], empty[covered][:, :, outside]
    )
    # The wall itself never changes.
    assert (shown[:, :, ~outside] == shown[:1, :, ~outside]).all()
    # Away from the boxes there is nothing but background.
    for frame in range(0, T, 12):
      free = outside[None] & np.ones((64, 1), bool)
      for thing in np.flatnonzero(truth.digit[clip] >= 0):
        free[box(truth, clip, frame, thing)] = False
      np.testing.assert_array_equal(shown[frame][free], empty[frame][free])


@hypothesis.settings(max_examples=5)
@hypothesis.given(s=any_seed, split=splits)
def test_captions_agree_with_the_truth(s, split):
  clips = draw(s, split)
  truth = clips.truth
  for clip, row in enumerate(clips.choices):
    prompt = prompts.parse(words.prompt_of(row).text())
    np.testing.assert_array_equal(words.choices_of(prompt), row)
    number = len(prompt.things)
    assert (truth.digit[clip] >= 0).tolist() == [True, number == 2]
    assert (truth.wall[clip, 1] > 0) == (prompt.wall != "")
    assert truth.graded[clip] == (prompt.style == "graded")
    assert prompts.BACKGROUNDS[truth.background[clip]] == prompt.background
    for k, thing in enumerate(prompt.things):
      assert truth.digit[clip, k] == thing.digit
      assert prompts.COLOURS[truth.colour[clip, k]] == thing.colour
      pace = {"slow": 10.0, "fast": 20.0}[thing.speed]
      way = {"": 0, "left": -1, "up": -1, "right": 1, "down": 1}
      said = pace * np.array([way[thing.horizontal], way[thing.vertical]])
      np.testing.assert_array_equal(truth.velocity[clip, 0, k], said)


def test_positions_follow_velocities(seed):
  truth = draw(seed).truth
  step = np.diff(truth.position, axis=1) * motion.FPS
  straight = truth.velocity[:, 1:] == truth.velocity[:, :-1]
  np.testing.assert_array_equal(
    step[straight], truth.velocity[:, :-1][straight]
  )
  assert straight.mean() > 0.9


@hypothesis.settings(max_examples=3)
@hypothesis.given(s=any_seed, split=splits)
def test_compiled_or_not_the_clips_are_equal(s, split):
  key = jax.random.key(s)
  plain = world.sample(key, size=2, num_frames=5, split=split)
  compiled = _sample(key, size=2, num_frames=5, split=split)
  jax.tree.map(np.testing.assert_array_equal, plain, compiled)


def test_equal_keys_give_equal_clips_and_others_others(seed):
  one, same, other = draw(seed), draw(seed), draw(seed + 1)
  jax.tree.map(np.testing.assert_array_equal, one, same)
  assert not np.array_equal(one.video, other.video)
  train, test = draw(seed, "train"), draw(seed, "test")
  assert not np.array_equal(train.video, test.video)


def test_clips_do_not_depend_on_their_number_or_length(seed):
  whole = draw(seed)
  short = draw(seed, size=5, num_frames=9)
  np.testing.assert_array_equal(short.video, whole.video[:5, :9])
  np.testing.assert_array_equal(
    short.truth.position, whole.truth.position[:5, :9]
  )
  later = _sample(
    jax.random.key(seed), size=3, num_frames=9, split="train", first=2
  )
  np.testing.assert_array_equal(later.video, short.video[2:])
  np.testing.assert_array_equal(later.choices, short.choices[2:])


def test_absent_digits_have_no_truth(seed):
  truth = draw(seed).truth
  absent = truth.digit < 0
  for name in ("half", "offset", "sprite"):
    assert not getattr(truth, name)[absent].any(), name
  for name in ("position", "velocity", "visible", "hidden"):
    values = np.moveaxis(getattr(truth, name), 1, 0)
    assert not values[:, absent].any(), name
  assert (truth.colour[absent] == -1).all()


def test_truth_is_float32_within_its_ranges(seed):
  clips = draw(seed)
  truth = clips.truth
  for name in ("half", "offset", "position", "velocity", "visible", "wall"):
    assert getattr(truth, name).dtype == np.float32, name
  assert truth.visible.min() >= 0
  assert truth.visible.max() <= 1
  assert np.isfinite(truth.offset).all()
  assert clips.video.dtype == np.uint8


def test_film_shows_the_prompts_that_it_is_given(seed):
  texts = [
    "a slow red 3 moves left, on a navy background",
    "a fast blue 7 moves up, a slow white 1 moves right, on a grey background",
    "a slow cyan 5 moves right, on a plum background, with a wall on the right",
  ]
  choices = np.stack([words.choices_of(prompts.parse(t)) for t in texts])
  film = functools.partial(world.film, num_frames=3, split="test")
  clips = jax.jit(film)(jax.random.key(seed), choices)
  np.testing.assert_array_equal(clips.choices, choices)
  np.testing.assert_array_equal(clips.truth.digit, [[3, -1], [7, 1], [5, -1]])
  assert_close(clips.truth.velocity[0, 0, 0], [-10.0, 0.0], "exact")


def test_batches_are_clips_with_tokens(seed):
  key = jax.random.key(seed)
  batch = _batch(key, size=4, num_frames=3)
  assert batch["video"].shape == (4, 3, 64, 64, 3)
  assert batch["video"].dtype == np.uint8
  tokens = np.asarray(batch["tokens"])
  assert tokens.dtype == np.int32
  for row in tokens:
    prompt = words.prompt_of(words.choices_of_tokens(row))
    np.testing.assert_array_equal(words.tokenize(prompt.text()), row)
    assert set(prompt.pairs()) <= set(prompts.training_pairs())


def test_prompts_and_words_are_left_out(seed):
  draw_tokens = lambda **chances: np.asarray(
    _batch(jax.random.key(seed), size=400, num_frames=1, **chances)["tokens"]
  )
  full, null = draw_tokens(), draw_tokens(prompt_dropout=1.0)
  assert (null == words.PADDING).all()
  some = draw_tokens(word_dropout=0.5)
  assert set(np.unique(some - full)) <= {0, *(-full).ravel()}
  said = full > 0
  assert 0.45 < (some == 0)[said].mean() < 0.55
  rows = draw_tokens(prompt_dropout=0.5)
  whole = (rows == full).all(1)
  assert ((rows == 0).all(1) | whole).all()
  assert 0.35 < whole.mean() < 0.65


@pytest.mark.parametrize(
  ("changes", "message"),
  [({"num_frames": 0}, "num_frames=0"), ({"split": "valid"}, "split='valid'")],
)
def test_nonsense_is_an_error(changes, message):
  arguments = {"size": 1, "num_frames": 2, **changes}
  with pytest.raises(ValueError, match=message):
    world.sample(jax.random.key(0), **arguments)
