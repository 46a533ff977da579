"""Measures how a digit moves: direction, speed, smoothness, bounces."""

import math

from jaxtyping import Bool, Float, Int
import numpy as np

from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import paths
from videomla_jax.small_world.colour import tracks

Values = dict[str, float]

_NAN = float("nan")
_BEGINNING = 8  # frames in which a digit moves as its caption says
_FEWEST = 3  # whole frames that show a direction
_MOVING = 0.25  # px a frame; slow digits have 0.625
_LAG = 4  # frames over which a speed is taken
# Pixels from the edge: in four frames a fast digit moves 5, and a bounce
# between two frames brings one of them nearer than this.
_ROOM = 4.0
_FEWEST_LAGS = 4
_SPEED_SHARE = 0.10  # share within which a speed is right
_REST = 0.10  # px a frame that a resting axis may seem to move
_JUMP = 1.5  # px by which a step may be longer than usual
_CONTACT = 2.0  # px between what is seen of a digit and the edge
_RUN = 6  # frames that tell a velocity
_TURN = 7  # frames from a contact to the motion after it
_SLOWEST = 0.3  # px a frame of a digit that bounces
_MIRRORED = 0.35  # share by which the velocity after a bounce may differ
_KEPT_INK = 0.85  # share of the ink that has to be inside afterwards
_WALL_GAP = 4.0  # px beside the wall in which no contact is judged


def direction(thing: tracks.Thing) -> float:
  """Tells whether a digit first moves as the prompt says, 0 or 1.

  Args:
    thing: The digit.

  Returns:
    NaN if it is not seen whole at the beginning.
  """
  time = np.flatnonzero(thing.whole[:_BEGINNING])
  if len(time) < _FEWEST:
    return _NAN
  slope = _slope(time, thing.centre[time])
  sense = np.where(np.abs(slope) > _MOVING, np.sign(slope), 0)
  return float((sense == asked_sense(thing)).all())


def asked_sense(thing: tracks.Thing) -> Float[np.ndarray, "2"]:
  """Returns the signs (x, y) of the velocity that the prompt asks for."""
  words = {"": 0, "left": -1, "right": 1, "up": -1, "down": 1}
  asked = thing.asked
  return np.array([words[asked.horizontal], words[asked.vertical]], float)


def speeds(thing: tracks.Thing, window: slice) -> Values:
  """Compares the speed along each axis with the prompt's word.

  Pairs of frames near an edge are left out, since a digit may bounce between
  them; the median passes over jumps.

  Args:
    thing: The digit.
    window: Frames.

  Returns:
    speed_ratio of the moving axes; speed, whether every moving axis is within
    a tenth and the others rest.
  """
  centre, clear = thing.centre[window], _clear(thing)[window]
  both = clear[_LAG:] & clear[:-_LAG]
  step = np.abs(centre[_LAG:] - centre[:-_LAG]) / _LAG
  moves = asked_sense(thing) != 0
  if (both.sum(0)[moves] < _FEWEST_LAGS).any():
    return {"speed_ratio": _NAN, "speed": _NAN}
  measured = np.array([_median(step[both[:, axis], axis]) for axis in (0, 1)])
  ratio = measured / wanted_speed(thing)
  right = np.abs(ratio - 1) <= _SPEED_SHARE
  # An axis that rests near an edge has no such pairs.
  right = np.where(moves, right, ~(measured > _REST))
  return {
    "speed_ratio": float(ratio[moves].mean()),
    "speed": float(right.all()),
  }


def wanted_speed(thing: tracks.Thing) -> float:
  """Returns the prompt's speed along a moving axis, px a frame."""
  number = ("slow", "fast").index(thing.asked.speed)
  return motion.PX_PER_SECOND[number] / motion.FPS


def smoothness(thing: tracks.Thing, window: slice) -> Values:
  """Compares a digit with the best uniform motion, whatever the prompt.

  Args:
    thing: The digit.
    window: Frames.

  Returns:
    residual_px, RMS distance from the best path; jumps, share of steps that
    are longer than usual; jitter_px, noise of a position, from second
    differences.
  """
  edges = thing.edges()
  time = np.flatnonzero(thing.whole[window])
  runs = paths.split_runs(thing.whole[window])
  if edges is None or max((b - a for a, b in runs), default=0) < _BEGINNING:
    return {"residual_px": _NAN, "jumps": _NAN, "jitter_px": _NAN}
  centre = thing.centre[window]
  away = []
  for axis in (0, 1):
    place = centre[time, axis]
    limits = float(edges[0, axis]), float(edges[1, axis])
    away.append(paths.fit(time, place, edges=limits).at(time) - place)
  residual = float(np.sqrt(np.square(away).sum(0).mean()))
  whole = thing.whole[window]
  pair = whole[1:] & whole[:-1]
  step = np.abs(np.diff(centre, axis=0))
  usual = np.median(step[pair], 0) if pair.any() else np.zeros(2)
  longer = (step > usual + _JUMP).any(1)
  clear = _clear(thing)[window]
  triple = clear[2:] & clear[1:-1] & clear[:-2]
  second = np.abs(np.diff(centre, n=2, axis=0))
  middle = [_median(second[triple[:, axis], axis]) for axis in (0, 1)]
  return {
    "residual_px": residual,
    "jumps": float(longer[pair].mean()) if pair.any() else _NAN,
    # A second difference of noise has six times its variance, and the median
    # of a normal distribution's absolute values is 0.674 deviations.
    "jitter_px": float(np.nanmax(middle)) / 0.674 / math.sqrt(6)
    if triple.any()
    else _NAN,
  }


def _clear(thing: tracks.Thing) -> Bool[np.ndarray, "T 2"]:
  """Tells where a whole digit is too far from the edges to bounce soon."""
  room = np.minimum(thing.box[:, :2], motion.SIZE - thing.box[:, 2:])
  return thing.whole[:, None] & (room > _ROOM)


def _median(values: Float[np.ndarray, "n"]) -> float:
  return float(np.median(values)) if len(values) else _NAN


def bounces(
  followed: tracks.Followed, thing: tracks.Thing
) -> list[tuple[int, bool]]:
  """Judges every contact with an edge of the frame that can be seen.

  Args:
    followed: The digits of the video.
    thing: The digit.

  Returns:
    Frame of each contact, and whether the velocity is mirrored afterwards and
    the digit stays inside.
  """
  found = []
  for axis in (0, 1):
    room = np.stack([thing.box[:, axis], motion.SIZE - thing.box[:, axis + 2]])
    for side, outward in ((0, -1), (1, 1)):
      near = thing.whole & (room[side] <= _CONTACT)
      for first, _ in paths.split_runs(near):
        right = _bounce(followed, thing, axis, outward, first)
        if right is not None:
          found.append((first, right))
  return sorted(found)


def _bounce(
  followed: tracks.Followed,
  thing: tracks.Thing,
  axis: int,
  outward: int,
  contact: int,
) -> bool | None:
  """Judges one contact; None if it cannot be told."""
  before = np.arange(contact - _RUN, contact)
  after = np.arange(contact + _TURN, contact + _TURN + _RUN)
  if before[0] < 0 or after[-1] >= len(thing.seen):
    return None
  if not thing.whole[before].all():
    return None
  speed = outward * float(_slope(before, thing.centre[before, axis]))
  if speed < _SLOWEST:
    return None
  around = np.arange(before[0], after[-1] + 1)
  step = np.abs(np.diff(thing.centre[around], axis=0))
  if np.nanmax(step, initial=0.0) > speed + _JUMP:
    return None  # `jumps` counts that
  # Whatever is not whole afterwards has either left, or is hidden lawfully.
  if not thing.whole[after].all():
    inside = thing.seen[contact : after[-1] + 1]
    lawful = _near_wall(followed, thing, contact) or _met(thing, after)
    return None if lawful or inside.all() else False
  back = -outward * float(_slope(after, thing.centre[after, axis]))
  ink = thing.ink[after].mean() >= _KEPT_INK * thing.ink[before].mean()
  return bool(abs(back - speed) <= _MIRRORED * speed and ink)


def _near_wall(
  followed: tracks.Followed, thing: tracks.Thing, frame: int
) -> bool:
  """Tells whether the wall may hide a digit soon after a frame."""
  wall = followed.wall
  if wall[0] >= wall[1]:
    return False
  box, reach = thing.box[frame], _WALL_GAP + 2.0 * (_TURN + _RUN)
  return bool(box[2] >= wall[0] - reach and box[0] <= wall[1] + reach)


def _met(thing: tracks.Thing, frames: Int[np.ndarray, "n"]) -> bool:
  return bool(thing.touched[frames].any())


def _slope(
  time: Int[np.ndarray, "n"], place: Float[np.ndarray, "n *axes"]
) -> Float[np.ndarray, "*axes"]:
  """Returns the slope of the line of least squares."""
  away = time - time.mean()
  return np.asarray(np.tensordot(away, place, 1) / (away @ away))
