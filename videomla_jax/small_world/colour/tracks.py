"""Follows each digit that a prompt names through a video.

A digit is known by its colour. If its colour is never there, the commonest
colour that nobody asked for stands in, so that a wrong colour is one fault and
not also a fault of motion and identity.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

from videomla_jax.small_world.colour import glyphs
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import observe
from videomla_jax.small_world.colour import paths
from videomla_jax.small_world.colour import prompts as prompts_lib

FOREIGN_INK = 40.0  # pixels; edges between two digits can look like a third
# Seen boxes lack what covers less than `observe.EDGE_COVER`: of held-out
# handwriting 0.7 to 1.5 px on each side.
UNSEEN_RIM = 1.07
_FEWEST = 0.05  # share of frames in which a colour must be there to be followed
_FEWEST_FOREIGN = 0.2  # the same for a colour that nobody asked for
_GAP = 1.0  # px between a digit and the wall, for it to be whole
_AT_WALL = 2.5  # px between a digit and the wall that it goes behind
_LAST_FRAMES = 3  # of a digit before it is gone


class Thing(NamedTuple):
  """One digit of one video, frame by frame.

  Attributes:
    asked: What the prompt says of it.
    colour: Number of the colour that is followed in each frame.
    ink: Pixels that it covers.
    centre: Centroid, pixels; NaN where nothing is seen.
    box: Left, upper, right and lower edge of what is seen, pixels.
    seen: Whether enough of it is seen to be there.
    touched: Whether another digit touches it.
    whole: Whether all of it is seen, and no other digit is near.
    said: Log probabilities of the ten digits; NaN where it is not whole.
  """

  asked: prompts_lib.Thing
  colour: Int[np.ndarray, "T"]
  ink: Float[np.ndarray, "T"]
  centre: Float[np.ndarray, "T 2"]
  box: Float[np.ndarray, "T 4"]
  seen: Bool[np.ndarray, "T"]
  touched: Bool[np.ndarray, "T"]
  whole: Bool[np.ndarray, "T"]
  said: Float[np.ndarray, "T 10"]

  @property
  def asked_colour(self) -> int:
    """Number of the colour that the prompt names."""
    return prompts_lib.COLOURS.index(self.asked.colour)

  def edges(
    self, frames: slice = slice(None)
  ) -> Float[np.ndarray, "2 2"] | None:
    """Returns the least and greatest (x, y) of its centroid, or None.

    Args:
      frames: The frames in which its size is taken.
    """
    whole = self.whole[frames]
    if not whole.any():
      return None
    box, centre = self.box[frames][whole], self.centre[frames][whole]
    before = np.median(centre - box[:, :2], 0) + UNSEEN_RIM
    after = np.median(box[:, 2:] - centre, 0) + UNSEEN_RIM
    return np.stack([before, motion.SIZE - after])

  def middle(self) -> Float[np.ndarray, "T 2"]:
    """Returns the middle (x, y) of what is seen of it."""
    return (self.box[:, :2] + self.box[:, 2:]) / 2


class Followed(NamedTuple):
  """All that is followed in one video.

  Attributes:
    things: What the prompt names, in its order.
    others: The other colours, as things without words.
    wall: Left and right edge of the wall in most frames; both 0 for none.
    seen: One video of `observe.observe`.
  """

  things: tuple[Thing, ...]
  others: tuple[Thing, ...]
  wall: Float[np.ndarray, "2"]
  seen: observe.Observed


def follow(
  seen: observe.Observed,
  prompts: Sequence[prompts_lib.Prompt],
  reader: glyphs.Reader,
) -> list[Followed]:
  """Follows the digits of each video.

  Args:
    seen: What is seen in every video.
    prompts: What each should show.
    reader: A trained reader of digits.
  """
  whole, walls = zip(
    *(_whole(_video(seen, i)) for i in range(len(prompts))), strict=True
  )
  every = np.stack(whole)
  said = np.full((*every.shape, 10), np.nan, np.float32)
  said[every] = glyphs.read(reader, seen.crop[every])
  return [
    _follow(_video(seen, i), prompt, walls[i], every[i], said[i])
    for i, prompt in enumerate(prompts)
  ]


def absences(thing: Thing) -> list[tuple[int, int]]:
  """Returns first and one past the last frame of each time it is not seen."""
  return paths.split_runs(~thing.seen)


def go_on(followed: Followed, number: int, other: int, first: int) -> Followed:
  """Follows a digit on in another colour until its own is seen again.

  Args:
    followed: The digits of one video.
    number: Which of its things.
    other: Which of its others takes its place.
    first: First frame in which it does.
  """
  thing, heir = followed.things[number], followed.others[other]
  own = np.flatnonzero(thing.seen[first:])
  end = first + int(own[0]) if len(own) else len(thing.seen)
  joined = [
    np.concatenate([mine[:first], its[first:end], mine[end:]])
    for mine, its in zip(thing[1:], heir[1:], strict=True)
  ]
  seen = heir.seen.copy()
  seen[first:end] = False
  things, others = list(followed.things), list(followed.others)
  things[number] = Thing(thing.asked, *joined)
  others[other] = heir._replace(seen=seen)
  return followed._replace(things=tuple(things), others=tuple(others))


def left_at_wall(
  thing: Thing, first: int, wall: Float[np.ndarray, "2"]
) -> bool:
  """Tells whether a digit was at the wall when it was seen last.

  Args:
    thing: The digit.
    first: First frame in which it is not seen.
    wall: Edges of the wall; both 0 for none.
  """
  if first == 0 or wall[0] >= wall[1]:
    return False
  box = thing.box[max(0, first - _LAST_FRAMES) : first]
  near = np.stack([wall[0] - box[:, 2], box[:, 0] - wall[1]])
  return bool((np.abs(near) <= _AT_WALL).any())


def word(said: Float[np.ndarray, "n 10"]) -> int:
  """Returns the digit that all frames together speak for.

  Args:
    said: Log probabilities; at least one frame.
  """
  return int(said.mean(0).argmax())


def _video(seen: observe.Observed, index: int) -> observe.Observed:
  return observe.Observed(*(array[index] for array in seen))


def _whole(
  seen: observe.Observed,
) -> tuple[Bool[np.ndarray, "T colours"], Float[np.ndarray, "2"]]:
  """Tells where each colour is whole, and returns the edges of the wall."""
  there = seen.wall[:, 1] > seen.wall[:, 0]
  wall = np.zeros(2)
  if there.mean() >= 0.5:
    wall = np.median(seen.wall[there], 0)
  whole = (seen.ink >= observe.MIN_INK) & ~seen.touched
  if wall[1] > wall[0]:
    beside = (seen.box[..., 2] <= wall[0] - _GAP) | (
      seen.box[..., 0] >= wall[1] + _GAP
    )
    whole &= beside
  return whole, wall


def _follow(
  seen: observe.Observed,
  prompt: prompts_lib.Prompt,
  wall: Float[np.ndarray, "2"],
  whole: Bool[np.ndarray, "T colours"],
  said: Float[np.ndarray, "T colours 10"],
) -> Followed:
  colours = _colours(seen.ink, prompt)

  def thing(asked: prompts_lib.Thing, colour: int, least: float) -> Thing:
    ink = seen.ink[:, colour]
    there = ink >= least
    return Thing(
      asked=asked,
      colour=np.full(len(ink), colour),
      ink=ink,
      centre=seen.centre[:, colour],
      box=seen.box[:, colour],
      seen=there,
      touched=seen.touched[:, colour],
      whole=whole[:, colour] & there,
      said=said[:, colour],
    )

  return Followed(
    things=tuple(
      thing(asked, colour, observe.MIN_INK)
      for asked, colour in zip(prompt.things, colours, strict=True)
    ),
    others=tuple(
      thing(prompt.things[0], colour, FOREIGN_INK)
      for colour in range(seen.ink.shape[1])
      if colour not in colours
    ),
    wall=wall,
    seen=seen,
  )


def _colours(
  ink: Float[np.ndarray, "T colours"], prompt: prompts_lib.Prompt
) -> list[int]:
  """Chooses the colour by which each digit of a prompt is followed."""
  asked = [prompts_lib.COLOURS.index(x.colour) for x in prompt.things]
  share = (ink >= FOREIGN_INK).mean(0)
  free: list[Int[np.ndarray, ""]] = [
    k
    for k in np.argsort(-share, kind="stable")
    if k not in asked and share[k] >= _FEWEST_FOREIGN
  ]
  common = (ink >= observe.MIN_INK).mean(0)
  return [
    int(free.pop(0)) if common[k] < _FEWEST and free else k for k in asked
  ]
