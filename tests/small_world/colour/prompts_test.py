"""Tests of the grammar and of held-out pairs."""

import collections

import hypothesis
from hypothesis import strategies as st
import pytest

from videomla_jax.small_world.colour import prompts


@st.composite
def any_words(draw):
  """Words of a prompt of the grammar, of its things and of the rest."""
  wall = draw(st.sampled_from(("", *prompts.WALLS)))
  colours = draw(
    st.lists(
      st.sampled_from(prompts.COLOURS), min_size=1, max_size=2, unique=True
    )
  )
  things = []
  for colour in colours:
    horizontal = draw(
      st.sampled_from(prompts.HORIZONTAL + (() if wall else ("",)))
    )
    vertical = draw(
      st.sampled_from(prompts.VERTICAL + (("",) if horizontal else ()))
    )
    things.append(
      dict(
        digit=draw(st.integers(0, 9)),
        colour=colour,
        speed=draw(st.sampled_from(prompts.SPEEDS)),
        vertical=vertical,
        horizontal=horizontal,
      )
    )
  return things, dict(
    background=draw(st.sampled_from(prompts.BACKGROUNDS)),
    style=draw(st.sampled_from(prompts.STYLES)),
    wall=wall,
  )


@hypothesis.given(words=any_words())
def test_text_reads_back_as_the_prompt(words):
  things, rest = words
  things = tuple(prompts.Thing(**thing) for thing in things)
  prompt = prompts.Prompt(things=things, **rest)
  assert prompts.parse(prompt.text()) == prompt
  assert prompts.parse(prompt.text().upper()) == prompt


@pytest.mark.parametrize(
  ("text", "canonical"),
  [
    (
      "A Slow RED three moves left on a gray background.",
      "a slow red 3 moves left, on a plain grey background",
    ),
    (
      "a quick cyan 0 moving downwards and right and a white nine that rises"
      " slowly on the gradient black background",
      "a fast cyan 0 moves down and right, a slow white 9 moves up, on a graded"
      " black background",
    ),
    (
      "a blue 7 goes left quickly, on a navy background, behind the wall in"
      " the centre",
      "a fast blue 7 moves left, on a plain navy background, with a wall in the"
      " middle",
    ),
    (
      "with a wall at the right, a fast pink 8 moves right; a slow green 8"
      " moves up and left, over a plum background",
      "a fast pink 8 moves right, a slow green 8 moves up and left, on a plain"
      " plum background, with a wall on the right",
    ),
  ],
)
def test_prompts_of_people_are_understood(text, canonical):
  assert prompts.parse(text).text() == canonical


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "has no background"),
    ("a slow red 3 moves left", "has no background"),
    ("on a grey background", "names no digit"),
    ("a slow red 3 moves left, on a mauve background", "background='mauve'"),
    ("a slow red moves left, on a grey background", "a digit without digit"),
    ("a slow 3 moves left, on a grey background", "a digit without colour"),
    ("a red 3 moves left, on a grey background", "a digit without speed"),
    ("a slow red 3, on a grey background", "has no direction"),
    ("a slow red 3 hops left, on a grey background", "unknown words 'hops'"),
    (
      "a slow red 3 moves left and right, on a grey background",
      "left and right for one digit",
    ),
    (
      "a slow red 3 moves left, a slow red 4 moves up, on a grey background",
      "both digits are red",
    ),
    (
      "a slow red 3 moves up, on a grey background, with a wall on the left",
      "would never pass behind the wall",
    ),
    (
      "a slow red 3 moves left, on a grey background, with a wall on the roof",
      "wall='roof'",
    ),
  ],
)
def test_nonsense_is_an_error_in_one_sentence(text, message):
  with pytest.raises(ValueError, match=message) as error:
    prompts.parse(text)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "text",
  [
    "x" * 10**6,
    "word " * 10**5 + "on a grey background",
    "a slow red 3 moves left, on a " + "x" * 10**6 + " background",
  ],
)
def test_what_strangers_write_is_not_quoted_at_length(text):
  with pytest.raises(ValueError) as error:
    prompts.parse(text)
  assert len(str(error.value)) < 500


def test_three_digits_are_an_error():
  three = ", ".join(f"a slow {c} 1 moves up" for c in ("red", "blue", "cyan"))
  with pytest.raises(ValueError, match="names 3 digits"):
    prompts.parse(f"{three}, on a grey background")


def test_each_digit_and_colour_is_trained_though_not_in_held_out_pairs():
  train, test = set(prompts.training_pairs()), set(prompts.held_out_pairs())
  assert not train & test
  assert (len(train), len(test)) == (60, 20)
  assert {d for d, _ in train} == {d for d, _ in test} == {*range(10)}
  assert {c for _, c in train} == {c for _, c in test} == {*prompts.COLOURS}
  assert {*collections.Counter(d for d, _ in test).values()} == {2}
  assert {*collections.Counter(c for _, c in test).values()} <= {2, 3}


def test_unknown_split_is_an_error():
  with pytest.raises(ValueError, match="split='valid'"):
    prompts.split_pairs("valid")
