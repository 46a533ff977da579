"""Tests of word ids."""

import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np

from videomla_jax.small_world.colour import prompts
from videomla_jax.small_world.colour import words


@st.composite
def any_choices(draw):
  """Words of all places that make a prompt."""
  wall = draw(st.integers(0, 3))
  first = draw(st.integers(1, 8))
  colours = [first, draw(st.integers(1, 8).filter(lambda c: c != first))]
  things = []
  for colour in colours:
    left_right = draw(st.integers(1 if wall else 0, 2))
    things.append(
      [
        colour,
        draw(st.integers(1, 10)),
        draw(st.integers(0 if left_right else 1, 2)),
        left_right,
        draw(st.integers(1, 2)),
      ]
    )
  if draw(st.booleans()):
    things[1] = [0] * 5
  ground = [draw(st.integers(1, 2)), draw(st.integers(1, 6)), wall]
  return np.array([*things[0], *things[1], *ground], np.int32)


@hypothesis.given(choices=any_choices())
def test_every_prompt_has_its_own_tokens_and_reads_back(choices):
  prompt = words.prompt_of(choices)
  np.testing.assert_array_equal(words.choices_of(prompt), choices)
  tokens = words.tokenize(prompt.text())
  assert tokens.dtype == np.int32
  assert tokens.shape == (words.NUM_TOKENS,)
  assert 0 <= tokens.min() <= tokens.max() < words.vocabulary_size()
  np.testing.assert_array_equal(tokens, words.tokens_of(choices))
  np.testing.assert_array_equal(tokens, words.tokens_of(jnp.asarray(choices)))
  np.testing.assert_array_equal(words.choices_of_tokens(tokens), choices)


def test_no_id_has_two_meanings_and_none_is_unused():
  ids = [
    int(
      words.tokens_of(np.eye(words.NUM_TOKENS, dtype=int)[place] * number)[
        place
      ]
    )
    for place, choices in enumerate(words.PLACES)
    for number in range(1, len(choices) + 1)
  ]
  assert ids == [*range(1, words.vocabulary_size())]


def test_word_order_of_digits_matters_and_of_nothing_else():
  one, two, moved = (
    words.tokenize(f"{text}, on a grey background")
    for text in (
      "a slow red 3 moves up, a slow blue 7 moves up",
      "a slow red 7 moves up, a slow blue 3 moves up",
      "a 3, red, slow, moves up".replace(",", "") + ", a 7 slow blue moves up",
    )
  )
  assert set(one) != set(two)
  np.testing.assert_array_equal(one, moved)


def test_batches_are_rows_of_single_prompts():
  texts = ["a slow red 3 moves up, on a navy background"] * 2
  batch = words.tokenize_batch(texts)
  np.testing.assert_array_equal(batch, [words.tokenize(t) for t in texts])
  assert words.tokenize_batch([]).shape == (0, words.NUM_TOKENS)


def test_unconditional_prompt_is_padding():
  assert (words.NULL_TOKENS == words.PADDING).all()


def test_numbers_of_words_are_those_the_motion_takes():
  assert prompts.WALLS == ("left", "middle", "right")
  assert prompts.HORIZONTAL == ("left", "right")
  assert prompts.VERTICAL == ("up", "down")
  assert prompts.SPEEDS == ("slow", "fast")
