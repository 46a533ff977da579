"""Judges what comes out from behind a wall against what went in.

Each time a digit goes behind the wall, the path that it was seen on says when
and where it has to come out. A digit that has to come out after the end of the
video is no event.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import paths
from videomla_jax.small_world.colour import tracks

WINDOW_FRAMES = 28  # 7 latent frames of 4, which models with a window see
PLACE_PX = 2.0  # how far from its path a digit may come out

_LATE = 16  # frames that a digit may come out too late
_BEFORE = 160  # frames before that tell the path
_FEWEST_BEFORE, _FEWEST_AFTER = 4, 3  # whole frames
_SAYING = 12  # whole frames that tell which digit it is
_PLACING = 8  # whole frames that tell where it is
_WAIT = 48  # frames in which these have to be found
_AHEAD = 3 * motion.MOST_HIDDEN  # frames that a path is looked ahead
_KNOWN = 0.01  # share by which a speed of the world may be off
_NEAR = 0.10  # share within which a speed is taken for one of the world
_NOISE = 0.1  # px, of a seen position
_STILL = 0.1  # px a frame
_SLACK = 0.25  # px, of the edges of a box


class Event(NamedTuple):
  """One time that a digit was behind the wall; shares are 0 or 1.

  Attributes:
    thing: Number of the digit in its prompt.
    first: First frame in which it was not seen.
    due: Frame in which it should be whole again.
    returned: Frame in which it was seen again, or the last that it may.
    hidden: Frames for which its box should be behind the wall.
    out: Whether it came out.
    colour: Whether it came out in the prompt's colour; NaN if it did not.
    same: Whether the same digit came out that went in; NaN if not known.
    identity: Whether the prompt's digit came out; NaN if not known.
    error: Distance from its path, pixels; NaN if not known.
    place: Whether that is at most `PLACE_PX`; NaN if not known.
  """

  thing: int
  first: int
  due: int
  returned: int
  hidden: int
  out: float
  colour: float
  same: float
  identity: float
  error: float
  place: float

  @property
  def right(self) -> float:
    """Whether all is right; NaN if it came out and not all is known."""
    parts = (self.colour, self.same, self.identity, self.place)
    if not self.out or 0.0 in parts:
      return 0.0
    return float("nan") if np.isnan(parts).any() else 1.0


class _Plan(NamedTuple):
  """Where a digit should be after it went behind the wall.

  Attributes:
    shows: First frame in which a part of it should be seen again.
    due: First frame in which it should be whole again.
    hidden: Frames for which its box should be behind the wall.
    centre: Centroid (x, y) from frame 0 on.
    middle: Middle (x, y) of its box.
  """

  shows: int
  due: int
  hidden: int
  centre: Float[np.ndarray, "T 2"]
  middle: Float[np.ndarray, "T 2"]


def events(
  followed: tracks.Followed,
) -> tuple[list[Event], tracks.Followed]:
  """Returns every time that a digit of one video was behind the wall.

  Args:
    followed: The digits of the video.

  Returns:
    The events, and the digits, which are followed in another colour where they
    came out in one.
  """
  found = []
  for number in range(len(followed.things)):
    earlier = start = 0
    while absence := _next(followed.things[number], start):
      first, end = absence
      start = end
      if not tracks.left_at_wall(followed.things[number], first, followed.wall):
        continue
      plan = _plan(followed.things[number], earlier, first, followed.wall)
      if plan is None:
        earlier = end
        continue
      event, other = _judge(followed, number, first, end, plan)
      if event is not None:
        found.append(event)
      if event is None or event.place != 1:
        earlier = end  # it is on another path now
      if event is not None and other is not None:
        followed = tracks.go_on(followed, number, other, event.returned)
        start = earlier = event.returned
  return found, followed


def _next(thing: tracks.Thing, start: int) -> tuple[int, int] | None:
  """Returns the first absence that begins in or after a frame."""
  return next((x for x in tracks.absences(thing) if x[0] >= start), None)


def excused(
  followed: tracks.Followed, found: Sequence[Event]
) -> Bool[np.ndarray, "things T"]:
  """Tells where each digit may be unseen: behind the wall or another digit.

  Args:
    followed: The digits of one video.
    found: What `events` returned.
  """
  result = np.zeros((len(followed.things), len(followed.seen.ink)), bool)
  until = {(x.thing, x.first): x.returned for x in found}
  for number, thing in enumerate(followed.things):
    for first, end in tracks.absences(thing):
      limit = 0
      if tracks.left_at_wall(thing, first, followed.wall):
        limit = first + motion.MOST_HIDDEN + _LATE
      elif first and thing.touched[first - 1]:
        limit = first + WINDOW_FRAMES
      limit = until.get((number, first), limit)
      result[number, first : min(end, max(limit, first))] = True
  return result


def _plan(
  thing: tracks.Thing, earlier: int, first: int, wall: Float[np.ndarray, "2"]
) -> _Plan | None:
  """Predicts when and where a digit comes out; None if nothing tells."""
  edges = thing.edges(slice(first))
  time = np.flatnonzero(thing.whole[:first])
  time = time[time >= max(earlier, first - _BEFORE)]
  if edges is None or len(time) < _FEWEST_BEFORE:
    return None
  axes = [
    _path(time, thing.centre[time, axis], edges[:, axis]) for axis in (0, 1)
  ]
  ahead = np.arange(first + _AHEAD)
  centre = np.stack([path.at(ahead) for path in axes], -1)
  reach = edges[0][0], motion.SIZE - edges[1][0]
  left, right = centre[:, 0] - reach[0], centre[:, 0] + reach[1]
  later = ahead >= first - _PLACING
  behind = later & (left >= wall[0] - _SLACK) & (right <= wall[1] + _SLACK)
  if abs(axes[0].speed) < _STILL or not behind.any():
    return None
  start = int(behind.argmax())
  beside = (right <= wall[0]) | (left >= wall[1])
  free = (ahead > start) & beside
  shows = (ahead > start) & ~behind
  if not free.any():
    return None
  middle = centre + (thing.middle() - thing.centre)[time].mean(0)
  out = int(shows.argmax())
  return _Plan(out, int(free.argmax()), out - start, centre, middle)


def _path(
  time: Int[np.ndarray, "n"],
  place: Float[np.ndarray, "n"],
  edges: Float[np.ndarray, "2"],
) -> paths.Path:
  """Fits a path, and takes a speed near one of the world for it.

  Over few frames a speed is seen badly, and after four seconds a small error
  of speed is a large one of place.
  """
  limits = float(edges[0]), float(edges[1])
  free = paths.fit(time, place, edges=limits)
  # Standard error of a slope, three times.
  away = time - time.mean()
  unsure = 3 * _NOISE / max(float(away @ away), 1e-6) ** 0.5
  for pixels in motion.PX_PER_SECOND:
    speed = pixels / motion.FPS
    if abs(abs(free.speed) - speed) <= max(_NEAR * speed, min(unsure, 0.3)):
      return paths.fit(time, place, edges=limits, known=(speed, _KNOWN * speed))
  if abs(free.speed) <= max(_STILL, min(unsure, 0.3)):
    return paths.fit(time, place, edges=limits, known=(0.0, 0.01))
  return free


def _judge(
  followed: tracks.Followed, number: int, first: int, end: int, plan: _Plan
) -> tuple[Event | None, int | None]:
  """Judges one absence, and tells which other colour came out, if one did.

  There is no event if the video ends before it can be told.
  """
  thing = followed.things[number]
  if plan.due + _PLACING > len(thing.seen):
    return None, None
  limit = min(plan.due + _LATE, len(thing.seen))
  at, other = _again(followed, first, end, limit)
  if at is None and plan.due + _LATE > len(thing.seen):
    return None, None
  if at is None:
    unknown = [float("nan")] * 5
    event = Event(number, first, plan.due, limit, plan.hidden, 0.0, *unknown)
    return event, None
  again = thing if other is None else followed.others[other]
  after = np.flatnonzero(again.whole[at : at + _WAIT]) + at
  before = np.flatnonzero(thing.whole[:first])[-_SAYING:]
  same = identity = error = float("nan")
  if len(after) >= _FEWEST_AFTER:
    said = tracks.word(again.said[after[:_SAYING]])
    same = float(said == tracks.word(thing.said[before]))
    identity = float(said == thing.asked.digit)
    error = _distance(again, plan, after[:_PLACING])
  event = Event(
    thing=number,
    first=first,
    due=plan.due,
    returned=at,
    hidden=plan.hidden,
    out=1.0,
    colour=float(again.colour[at] == thing.asked_colour),
    same=same,
    identity=identity,
    error=error,
    place=error if np.isnan(error) else float(error <= PLACE_PX),
  )
  return event, other


def _distance(
  again: tracks.Thing, plan: _Plan, frames: Int[np.ndarray, "n"]
) -> float:
  """Returns how far from its path a digit is, pixels.

  The centroid tells it best, and the middle of the box where another digit came
  out; the box of one with faint ends varies by a pixel or two.
  """
  away = (
    again.centre[frames] - plan.centre[frames],
    again.middle()[frames] - plan.middle[frames],
  )
  return float(min(np.median(np.hypot(*x.T)) for x in away))


def _again(
  followed: tracks.Followed, first: int, end: int, limit: int
) -> tuple[int | None, int | None]:
  """Finds in which frame something came out, and in which other colour."""
  found: list[tuple[int, int | None]] = [(end, None)] if end < limit else []
  for number, other in enumerate(followed.others):
    if other.seen[max(0, first - _PLACING) : first].any():
      continue
    frames = np.flatnonzero(other.seen[first:limit])
    # What is gone again at once was an edge between two digits.
    if len(frames) >= _FEWEST_AFTER:
      found.append((first + int(frames[0]), number))
  return min(found, key=lambda x: x[0], default=(None, None))
