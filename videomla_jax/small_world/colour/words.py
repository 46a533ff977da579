"""Word ids of the colour world: thirteen places, each with its own words.

A prompt becomes one id for each place, in a fixed order, and 0 where a place is
empty. Words of the second digit have ids of their own. The text encoder gives
each id a vector and knows no order, so this is how "a red 3 and a blue 7"
differs from "a red 7 and a blue 3".
"""

from collections.abc import Sequence

from jaxtyping import Array, Int, Int32
import numpy as np

from videomla_jax.small_world import prompts as small_prompts
from videomla_jax.small_world.colour import prompts

# The order of `_of_thing`.
THING_PLACES: tuple[tuple[str, ...], ...] = (
  prompts.COLOURS,
  tuple("0123456789"),
  prompts.VERTICAL,
  prompts.HORIZONTAL,
  prompts.SPEEDS,
)
COLOUR, DIGIT, UP_DOWN, LEFT_RIGHT, SPEED = range(len(THING_PLACES))
PLACES = (
  *THING_PLACES * prompts.MOST_THINGS,
  prompts.STYLES,
  prompts.BACKGROUNDS,
  prompts.WALLS,
)
STYLE, BACKGROUND, WALL = range(len(PLACES) - 3, len(PLACES))
NUM_TOKENS = len(PLACES)
PADDING = small_prompts.PADDING

_OFFSETS = np.cumsum([0, *map(len, PLACES[:-1])]).astype(np.int32)

# The unconditional prompt is padding only.
NULL_TOKENS: Int32[np.ndarray, "places"] = np.full(
  NUM_TOKENS, PADDING, np.int32
)
NULL_TOKENS.setflags(write=False)  # shared by every caller


def vocabulary_size() -> int:
  """Returns the number of token ids, padding included."""
  return 1 + sum(map(len, PLACES))


def choices_of(prompt: prompts.Prompt) -> Int32[np.ndarray, "places"]:
  """Returns the number of the word in each place, from 1, or 0 for none.

  Args:
    prompt: What a clip shows.
  """
  empty = ("",) * len(THING_PLACES)
  things = [_of_thing(thing) for thing in prompt.things]
  things += [empty] * (prompts.MOST_THINGS - len(things))
  chosen = *sum(things, ()), prompt.style, prompt.background, prompt.wall
  return np.array(
    [1 + w.index(x) if x else 0 for w, x in zip(PLACES, chosen, strict=True)],
    np.int32,
  )


def prompt_of(choices: Int[np.ndarray, "places"]) -> prompts.Prompt:
  """Returns the prompt of the words in all places; undoes `choices_of`.

  Args:
    choices: Number of the word in each place, from 1, or 0 for none.

  Raises:
    ValueError: If they are no prompt.
  """
  said = [w[c - 1] if c else "" for w, c in zip(PLACES, choices, strict=True)]
  things = []
  places = len(THING_PLACES)
  for first in range(0, prompts.MOST_THINGS * places, places):
    colour, digit, vertical, horizontal, speed = said[first : first + places]
    if colour:
      things.append(
        prompts.Thing(
          digit=int(digit),
          colour=colour,
          speed=speed,
          vertical=vertical,
          horizontal=horizontal,
        )
      )
  style, background, wall = said[STYLE:]
  return prompts.Prompt(
    things=tuple(things), background=background, style=style, wall=wall
  )


def tokens_of(
  choices: Int[Array, "*B places"] | Int[np.ndarray, "*B places"],
) -> Int[Array, "*B places"] | Int[np.ndarray, "*B places"]:
  """Returns token ids of the words in all places.

  Args:
    choices: Number of the word in each place, from 1, or 0 for none.
  """
  return (choices + _OFFSETS) * (choices > 0)


def choices_of_tokens(
  tokens: Int[np.ndarray, "*B places"],
) -> Int[np.ndarray, "*B places"]:
  """Returns the number of the word in each place; undoes `tokens_of`.

  Args:
    tokens: Token ids.
  """
  return (tokens - _OFFSETS) * (tokens > 0)


def tokenize(text: str) -> Int32[np.ndarray, "places"]:
  """Encodes one prompt as token ids.

  Args:
    text: Sentence that `prompts.parse` understands.

  Raises:
    ValueError: If it does not understand the sentence.
  """
  return tokens_of(choices_of(prompts.parse(text))).astype(np.int32)


def tokenize_batch(texts: Sequence[str]) -> Int32[np.ndarray, "B places"]:
  """Encodes prompts as `tokenize` does; none give an empty array."""
  rows = [tokenize(text) for text in texts]
  return np.array(rows, np.int32).reshape(len(rows), NUM_TOKENS)


def _of_thing(thing: prompts.Thing) -> tuple[str, ...]:
  """Returns the words of a thing in the order of `THING_PLACES`."""
  return (
    thing.colour,
    str(thing.digit),
    thing.vertical,
    thing.horizontal,
    thing.speed,
  )
