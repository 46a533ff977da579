"""Word prompts of the small world: vocabulary, parsing and held-out pairs.

A prompt names one digit, one direction and one speed, in any order and with
any filler between them: "a slow three moving horizontally". It becomes four
token ids in canonical order (digit, direction, speed, padding), so that one
meaning has exactly one encoding.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
import re

from jaxtyping import Int32
import numpy as np

DIGITS = (
  "zero",
  "one",
  "two",
  "three",
  "four",
  "five",
  "six",
  "seven",
  "eight",
  "nine",
)
DIRECTIONS = ("horizontal", "vertical", "diagonal")
SPEEDS = ("slow", "fast")
WORDS = DIGITS + DIRECTIONS + SPEEDS

NUM_TOKENS = 4  # three words and one place to spare for a later kind of word
PADDING = 0

# The unconditional prompt is padding only.
NULL_TOKENS: Int32[np.ndarray, "4"] = np.zeros(NUM_TOKENS, np.int32)
NULL_TOKENS.setflags(write=False)  # shared by every caller

_TOKEN_IDS = {word: index + 1 for index, word in enumerate(WORDS)}
_KINDS = {"digit": DIGITS, "direction": DIRECTIONS, "speed": SPEEDS}
_ALIASES = {
  **{str(index): word for index, word in enumerate(DIGITS)},
  "horizontally": "horizontal",
  "sideways": "horizontal",
  "vertically": "vertical",
  "diagonally": "diagonal",
  "slowly": "slow",
  "quick": "fast",
  "quickly": "fast",
  "rapid": "fast",
  "rapidly": "fast",
}
_FILLERS = frozenset(
  "a an the and is it that this of in with at digit number figure"
  " handwritten moving moves move going goes go bouncing bounces bounce"
  " motion direction speed video clip".split()
)
_SEPARATORS = re.compile(r"[\s,.;:!?\"()\[\]/_-]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """Says in canonical words what a clip shows.

  Attributes:
    digit: The digit that moves, 0..9.
    direction: One of `DIRECTIONS`.
    speed: One of `SPEEDS`.
  """

  digit: int
  direction: str
  speed: str

  def __post_init__(self) -> None:
    if not 0 <= self.digit <= 9:
      raise ValueError(
        f"digit={self.digit} must be from 0 to 9, since one digit is drawn."
      )
    _require_word("direction", self.direction, DIRECTIONS)
    _require_word("speed", self.speed, SPEEDS)

  def text(self) -> str:
    """Returns the prompt as a sentence that `parse` reads back."""
    return f"a {self.speed} {DIGITS[self.digit]} moving {self.direction}ly"

  def words(self) -> tuple[str, str, str]:
    """Returns the canonical words in token order."""
    return DIGITS[self.digit], self.direction, self.speed


def parse(prompt: str) -> Prompt:
  """Reads a prompt written by a person.

  Args:
    prompt: A digit, a direction and a speed in any order and case; aliases
      ("3", "sideways", "quickly") and filler words are allowed.

  Returns:
    The prompt in canonical words.

  Raises:
    ValueError: If the prompt is empty, has an unknown word, or does not have
      exactly one digit, one direction and one speed.
  """
  words = [word for word in _SEPARATORS.split(prompt.lower()) if word]
  if not words:
    raise ValueError(
      f"prompt={prompt!r} has no words; write a digit, a direction and a"
      ' speed, such as "a slow three moving horizontally".'
    )
  canonical = [_ALIASES.get(w, w) for w in words if w not in _FILLERS]
  _require_known(prompt, canonical)
  return Prompt(
    digit=DIGITS.index(_pick(prompt, canonical, "digit")),
    direction=_pick(prompt, canonical, "direction"),
    speed=_pick(prompt, canonical, "speed"),
  )


def tokenize(prompt: str) -> Int32[np.ndarray, "4"]:
  """Encodes one prompt as token ids, `WORDS` index + 1, padding 0.

  Args:
    prompt: Sentence that `parse` understands.

  Returns:
    Ids of (digit, direction, speed, padding), whatever the word order was.

  Raises:
    ValueError: If `parse` does not understand the prompt.
  """
  ids = [_TOKEN_IDS[word] for word in parse(prompt).words()]
  return np.array(ids + [PADDING] * (NUM_TOKENS - len(ids)), np.int32)


def tokenize_batch(prompts: Sequence[str]) -> Int32[np.ndarray, "B 4"]:
  """Encodes prompts as `tokenize` does; an empty sequence gives [0, 4]."""
  rows = [tokenize(prompt) for prompt in prompts]
  return np.array(rows, np.int32).reshape(len(rows), NUM_TOKENS)


def vocabulary_size() -> int:
  """Returns the number of token ids, padding included."""
  return len(WORDS) + 1


@functools.cache
def all_prompts() -> tuple[Prompt, ...]:
  """Returns all 60 prompts: digit slowest, then direction, then speed."""
  return tuple(
    Prompt(digit=digit, direction=direction, speed=speed)
    for digit in range(len(DIGITS))
    for direction in DIRECTIONS
    for speed in SPEEDS
  )


@functools.cache
def held_out_prompts() -> tuple[Prompt, ...]:
  """Returns the 10 prompts that training never sees, one for each digit.

  For digit d it is the pair (5 d + 2) mod 6, so that every digit, direction
  and speed does occur in training, only not in this combination.
  """
  num_pairs = len(DIRECTIONS) * len(SPEEDS)
  prompts = all_prompts()
  return tuple(
    prompts[digit * num_pairs + (digit * 5 + 2) % num_pairs]
    for digit in range(len(DIGITS))
  )


@functools.cache
def training_prompts() -> tuple[Prompt, ...]:
  """Returns the 50 prompts that training may use."""
  held_out = set(held_out_prompts())
  return tuple(p for p in all_prompts() if p not in held_out)


def _pick(prompt: str, words: Sequence[str], kind: str) -> str:
  """Returns the only word of `kind`, or says what to add or to remove."""
  choices = _KINDS[kind]
  # A word that is said twice still has one meaning.
  found = list(dict.fromkeys(word for word in words if word in choices))
  if not found:
    raise ValueError(
      f"prompt={prompt!r} has no {kind}; add one of {', '.join(choices)}."
    )
  if len(found) > 1:
    raise ValueError(
      f"prompt={prompt!r} has more than one {kind}, and a clip shows only one;"
      f" keep one of {', '.join(found)}."
    )
  return found[0]


def _require_known(prompt: str, words: Iterable[str]) -> None:
  unknown = sorted({word for word in words if word not in _TOKEN_IDS})
  if unknown:
    raise ValueError(
      f"prompt={prompt!r} has unknown words {', '.join(map(repr, unknown))};"
      f" use {', '.join(WORDS)}, or a numeral from 0 to 9."
    )


def _require_word(field: str, value: str, choices: Sequence[str]) -> None:
  if value not in choices:
    raise ValueError(f"{field}={value!r} must be one of {', '.join(choices)}.")
