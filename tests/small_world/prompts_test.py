"""Tests of the prompt vocabulary, parsing and the held-out pairs."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from videomla_jax.small_world import prompts

any_prompt = st.sampled_from(prompts.all_prompts())

_NOISE = ("a", "the", "Digit", "moving", "and", ",", "!", "moves")
_SYNONYMS = {
  "horizontal": ("horizontal", "horizontally", "sideways", "HORIZONTAL"),
  "vertical": ("vertical", "vertically", "Vertically"),
  "diagonal": ("diagonal", "diagonally"),
  "slow": ("slow", "slowly", "Slow"),
  "fast": ("fast", "quick", "quickly", "rapidly"),
}


@st.composite
def spellings(draw: st.DrawFn) -> tuple[prompts.Prompt, str]:
  """Draws a prompt and one of the many ways to write it."""
  prompt = draw(any_prompt)
  digit = draw(st.sampled_from((str(prompt.digit), prompt.words()[0])))
  kinds = [draw(st.sampled_from(_SYNONYMS[w])) for w in prompt.words()[1:]]
  noise = draw(st.lists(st.sampled_from(_NOISE), max_size=4))
  words = draw(st.permutations([digit, *kinds, *noise]))
  return prompt, draw(st.sampled_from((" ", "  ", ", ", "\n"))).join(words)


@hypothesis.given(prompt=any_prompt)
def test_text_parses_back_to_the_same_prompt(prompt):
  assert prompts.parse(prompt.text()) == prompt


@hypothesis.given(case=spellings())
def test_every_spelling_has_the_tokens_of_the_canonical_text(case):
  prompt, text = case
  np.testing.assert_array_equal(
    prompts.tokenize(text), prompts.tokenize(prompt.text())
  )


@hypothesis.given(prompt=any_prompt)
def test_tokens_name_the_words_in_canonical_order(prompt):
  tokens = prompts.tokenize(prompt.text())
  assert tuple(prompts.WORDS[t - 1] for t in tokens[:3]) == prompt.words()
  assert tokens[3] == prompts.PADDING
  assert tokens.max() < prompts.vocabulary_size()


def test_prompts_have_distinct_tokens_and_none_is_the_null_prompt():
  tokens = prompts.tokenize_batch([p.text() for p in prompts.all_prompts()])
  rows = {tuple(row) for row in tokens} | {tuple(prompts.NULL_TOKENS)}
  assert tokens.shape == (60, 4)
  assert len(rows) == 61


def test_tokenize_batch_of_nothing_is_empty():
  assert prompts.tokenize_batch([]).shape == (0, 4)


def test_null_tokens_cannot_be_changed():
  with pytest.raises(ValueError):
    prompts.NULL_TOKENS[0] = 1


def test_held_out_prompts_follow_the_rule_and_are_never_training_prompts():
  pairs = [(d, s) for d in prompts.DIRECTIONS for s in prompts.SPEEDS]
  held_out = prompts.held_out_prompts()
  expected = [(d, *pairs[(d * 5 + 2) % 6]) for d in range(10)]
  assert [(p.digit, p.direction, p.speed) for p in held_out] == expected
  assert not set(held_out) & set(prompts.training_prompts())
  assert {*held_out, *prompts.training_prompts()} == {*prompts.all_prompts()}


def test_every_word_occurs_in_training():
  words = {w for p in prompts.training_prompts() for w in p.words()}
  assert words == set(prompts.WORDS)


@pytest.mark.parametrize(
  ("prompt", "message"),
  [
    ("", "no words"),
    (" ,. ", "no words"),
    ("a slow purple three moving horizontally", "'purple'.*zero, one, two"),
    ("a slow 12 moving horizontally", "'12'"),
    ("\N{SLIGHTLY SMILING FACE}", "unknown"),
    ("a slow three and a four, moving vertically", "more than one digit"),
    ("slow fast three vertical", "more than one speed"),
    ("slow three vertical horizontal", "more than one direction"),
    ("slow vertical", "no digit; add one of zero"),
    ("three slow", "no direction; add one of horizontal"),
    ("three vertical", "no speed; add one of slow, fast"),
    ("the moving digit", "no digit"),
  ],
)
def test_bad_prompts_say_what_is_wrong_in_one_sentence(prompt, message):
  with pytest.raises(ValueError, match=message) as error:
    prompts.tokenize(prompt)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "fields",
  [
    {"digit": 10, "direction": "vertical", "speed": "slow"},
    {"digit": -1, "direction": "vertical", "speed": "slow"},
    {"digit": 1, "direction": "left", "speed": "slow"},
    {"digit": 1, "direction": "vertical", "speed": "medium"},
  ],
)
def test_prompt_rejects_fields_outside_the_vocabulary(fields):
  with pytest.raises(ValueError, match="must be"):
    prompts.Prompt(**fields)
