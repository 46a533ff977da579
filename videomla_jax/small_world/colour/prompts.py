"""Prompts of the colour world: what they say, and how people write them.

A prompt names one or two moving digits, a background and perhaps a wall: "a
slow red 3 moves left, a fast blue 7 moves up and right, on a graded navy
background, with a wall on the left". The digit that is named first passes in
front of the other. `words` turns prompts into ids.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import re

from videomla_jax.small_world import prompts as small_prompts
from videomla_jax.small_world.colour import palette

COLOURS = (*palette.COLOURS,)
BACKGROUNDS = (*palette.BACKGROUNDS,)
STYLES = ("plain", "graded")
SPEEDS = ("slow", "fast")
VERTICAL = ("up", "down")
HORIZONTAL = ("left", "right")
WALLS = ("left", "middle", "right")
MOST_THINGS = 2

_PLACES = {
  "left": "on the left",
  "middle": "in the middle",
  "right": "on the right",
}
_KINDS: dict[str, tuple[str, ...]] = {
  "colour": COLOURS,
  "digit": tuple("0123456789"),
  "speed": SPEEDS,
  "vertical": VERTICAL,
  "horizontal": HORIZONTAL,
}
_ALIASES = {
  **{name: str(i) for i, name in enumerate(small_prompts.DIGITS)},
  **{"gray": "grey", "gradient": "graded", "centre": "middle"},
  **{"center": "middle", "upwards": "up", "upward": "up", "rises": "up"},
  **{"downwards": "down", "downward": "down", "falls": "down"},
  **{"leftwards": "left", "rightwards": "right", "slowly": "slow"},
  **{"quick": "fast", "quickly": "fast", "fastly": "fast"},
}
_FILLERS = frozenset(
  "a an the and is it of to digit number figure handwritten moving moves move"
  " goes going slides bouncing bounces while that which".split()
)
_BACKGROUND = re.compile(
  r"\b(?:on|over) (?:(?:a|an|the) )?"
  rf"(?:(?P<style>{'|'.join(STYLES)}) )?(?P<name>\w+) background"
)
_WALL = re.compile(
  r"\b(?:with|behind) (?:(?:a|the) )?wall (?:on|at|in) (?:the )?(?P<place>\w+)"
)
_BETWEEN = re.compile(r",|;|\bwhile\b|\band (?=an? )")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thing:
  """Says how a moving digit looks, and how it moves at first.

  Attributes:
    digit: The digit, 0..9.
    colour: One of `COLOURS`.
    speed: One of `SPEEDS`, along each moving axis.
    vertical: One of `VERTICAL`, or "" if it does not move up or down.
    horizontal: One of `HORIZONTAL`, or "" if it does not move sideways.
  """

  digit: int
  colour: str
  speed: str
  vertical: str = ""
  horizontal: str = ""

  def __post_init__(self) -> None:
    if not 0 <= self.digit <= 9:
      raise ValueError(f"digit={self.digit} must be from 0 to 9.")
    _require_word("colour", self.colour, COLOURS)
    _require_word("speed", self.speed, SPEEDS)
    _require_word("vertical", self.vertical, ("", *VERTICAL))
    _require_word("horizontal", self.horizontal, ("", *HORIZONTAL))
    if not self.vertical and not self.horizontal:
      raise ValueError(
        f"the {self.colour} {self.digit} has no direction; add one or two of"
        f" {', '.join(VERTICAL + HORIZONTAL)}."
      )

  def text(self) -> str:
    """Returns the thing's part of a prompt."""
    way = " and ".join(w for w in (self.vertical, self.horizontal) if w)
    return f"a {self.speed} {self.colour} {self.digit} moves {way}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """Says what a clip shows.

  Attributes:
    things: One or two digits of different colours, the front one first.
    background: One of `BACKGROUNDS`.
    style: One of `STYLES`.
    wall: One of `WALLS`, or "" if there is none.
  """

  things: tuple[Thing, ...]
  background: str
  style: str = "plain"
  wall: str = ""

  def __post_init__(self) -> None:
    if not 1 <= len(self.things) <= MOST_THINGS:
      raise ValueError(
        f"a prompt names {len(self.things)} digits; name one or two."
      )
    colours = [thing.colour for thing in self.things]
    if len({*colours}) < len(colours):
      raise ValueError(
        f"both digits are {colours[0]}, and only colours tell them apart;"
        " choose another colour for one of them."
      )
    _require_word("background", self.background, BACKGROUNDS)
    _require_word("style", self.style, STYLES)
    _require_word("wall", self.wall, ("", *WALLS))
    for thing in self.things:
      if self.wall and not thing.horizontal:
        raise ValueError(
          f"the {thing.colour} {thing.digit} moves {thing.vertical} only and"
          " would never pass behind the wall; add left or right."
        )

  def text(self) -> str:
    """Returns the prompt as a sentence that `parse` reads back."""
    parts = [thing.text() for thing in self.things]
    parts.append(f"on a {self.style} {self.background} background")
    if self.wall:
      parts.append(f"with a wall {_PLACES[self.wall]}")
    return ", ".join(parts)

  def pairs(self) -> tuple[tuple[int, str], ...]:
    """Returns digit and colour of each thing."""
    return tuple((thing.digit, thing.colour) for thing in self.things)


def parse(text: str) -> Prompt:
  """Reads a prompt written by a person.

  Args:
    text: One or two digits, separated by a comma or "and a", a background and
      perhaps a wall, in any case; aliases ("seven", "gray", "slowly") and
      filler words are allowed.

  Returns:
    The prompt in canonical words.

  Raises:
    ValueError: If something is missing, unknown or said twice.
  """
  known = lambda m: _ALIASES.get(m.group(), m.group())
  rest = re.sub(r"\w+", known, " ".join(text.lower().split()))
  wall, rest = _take(_WALL, rest)
  ground, rest = _take(_BACKGROUND, rest)
  if not ground:
    raise ValueError(
      f'prompt={text!r:.80} has no background; add "on a plain grey '
      f'background", or another of {", ".join(BACKGROUNDS)}.'
    )
  parts = [words for p in _BETWEEN.split(rest) if (words := _telling(p))]
  if not parts:
    raise ValueError(
      f'prompt={text!r:.80} names no digit; add "a slow red 3 moves left".'
    )
  return Prompt(
    things=tuple(_thing(text, words) for words in parts),
    background=ground["name"],
    style=ground["style"] or "plain",
    wall=wall.get("place") or "",
  )


@functools.cache
def held_out_pairs() -> tuple[tuple[int, str], ...]:
  """Returns 20 pairs of digit and colour that training never shows.

  Digit d lacks the colours 3 d and 3 d + 4 (mod 8), so that every digit and
  every colour does occur in training, only not in these pairs.
  """
  number = len(COLOURS)
  return tuple(
    (digit, COLOURS[(3 * digit + skip) % number])
    for digit in range(10)
    for skip in (0, number // 2)
  )


@functools.cache
def training_pairs() -> tuple[tuple[int, str], ...]:
  """Returns the 60 pairs of digit and colour that training shows."""
  held_out = set(held_out_pairs())
  pairs = [(digit, colour) for digit in range(10) for colour in COLOURS]
  return tuple(pair for pair in pairs if pair not in held_out)


def split_pairs(split: str) -> tuple[tuple[int, str], ...]:
  """Returns the pairs of digit and colour in the prompts of a split.

  Args:
    split: "train" or "test"; each digit of a test prompt is a held-out pair.

  Raises:
    ValueError: If there is no such split.
  """
  _require_word("split", split, ("train", "test"))
  return training_pairs() if split == "train" else held_out_pairs()


def _take(
  pattern: re.Pattern[str], text: str
) -> tuple[Mapping[str, str | None], str]:
  """Takes the first match out of a text; returns its groups and the rest."""
  found = pattern.search(text)
  if found is None:
    return {}, text
  return found.groupdict(), text[: found.start()] + text[found.end() :]


def _telling(part: str) -> list[str]:
  """Returns the words of a part that are no fillers."""
  return [w for w in re.findall(r"[^\s.!?\"()]+", part) if w not in _FILLERS]


def _thing(text: str, words: Sequence[str]) -> Thing:
  """Makes a moving digit of its words."""
  every = {word for choices in _KINDS.values() for word in choices}
  unknown = [word for word in words if word not in every]
  if unknown:
    raise ValueError(
      f"prompt={text!r:.80} has unknown words {_listed(unknown)}; name"
      f" a speed ({', '.join(SPEEDS)}), a colour ({', '.join(COLOURS)}), a"
      f" numeral and a direction ({', '.join(VERTICAL + HORIZONTAL)})."
    )
  pick = functools.partial(_pick, text, words)
  return Thing(
    digit=int(pick("digit")),
    colour=pick("colour"),
    speed=pick("speed"),
    vertical=pick("vertical", needed=False),
    horizontal=pick("horizontal", needed=False),
  )


def _listed(words: Sequence[str]) -> str:
  """Names the first words of a list that a stranger wrote."""
  text = ", ".join(f"{word!r:.30}" for word in words[:3])
  return f"{text} and {len(words) - 3} more" if len(words) > 3 else text


def _pick(
  text: str, words: Sequence[str], kind: str, *, needed: bool = True
) -> str:
  """Returns the only word of a kind, or says what to add or to remove."""
  choices = _KINDS[kind]
  found = [*dict.fromkeys(word for word in words if word in choices)]
  if needed and not found:
    raise ValueError(
      f"prompt={text!r:.80} has a digit without {kind}; add one of"
      f" {', '.join(choices)}."
    )
  if len(found) > 1:
    raise ValueError(
      f"prompt={text!r:.80} has {' and '.join(found)} for one digit; keep one,"
      " or separate two digits by a comma."
    )
  return found[0] if found else ""


def _require_word(field: str, value: str, choices: Sequence[str]) -> None:
  if value not in choices:
    named = ", ".join(filter(None, choices))
    raise ValueError(f"{field}={value!r:.80} must be one of {named}.")
