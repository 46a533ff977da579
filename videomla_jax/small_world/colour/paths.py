"""Fits uniform motion between two edges to seen positions.

On an axis whose edges are l and h, R = h - l, a point that is unfolded at u is
seen at

  p = l + R - |(u mod 2R) - R|,  u(t) = u0 + s t,                        (1)

as in `bounce`. Given the half period that a frame is in, p is linear in u0 and
s, so they are fitted by least squares, the half periods are found anew, and so
on, over windows that double around the longest run of frames. At last the edges
are fitted, too: where a digit really bounces is known to a part of a pixel.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int, Num
import numpy as np

from videomla_jax.small_world import bounce

_FIRST = 8  # frames of the first window, at most
_ROUNDS = 4  # of least squares in each window
_MIN_REACH = 4.0  # pixels
_NOISE, _EDGE = 0.1, 0.3  # px, deviations of seen positions and of edges
_SPEEDS = (0.0, 0.625, 1.25, 2.0)  # px a frame, from which the fit starts


class Path(NamedTuple):
  """Uniform motion on one axis, Eq. (1).

  Attributes:
    low: Least place.
    reach: Greatest less least place, R.
    start: u0, at frame 0.
    speed: s, px a frame; its sign is the sense in frame 0.
  """

  low: float
  reach: float
  start: float
  speed: float

  def at(self, time: Num[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Returns where the point is in some frames.

    Args:
      time: Numbers of frames.
    """
    return self.low + bounce.fold(self.start + self.speed * time, self.reach)


def fit(
  time: Int[np.ndarray, "n"],
  place: Float[np.ndarray, "n"],
  *,
  edges: tuple[float, float],
  known: tuple[float, float] | None = None,
) -> Path:
  """Returns the path with the least squared distance from what was seen.

  Args:
    time: Numbers of the frames, growing; at least two.
    place: Where the point was seen, pixels.
    edges: Least and greatest place that the point can be at.
    known: A speed that is likely and its standard deviation, px a frame; the
      sense of the motion is not used.
  """
  low, reach = edges[0], max(edges[1] - edges[0], _MIN_REACH)
  seen = np.clip(place.astype(np.float64) - low, 0, reach)
  # The first window lies in the middle of the longest run.
  runs = split_runs(np.diff(time, append=time[-1] + 2) == 1)
  begin, end = max(runs, key=lambda x: x[1] - x[0], default=(0, 1))
  core = (begin + end) // 2
  away = time - time[core]
  lines = []
  for speed in _SPEEDS:
    for sense in (1, -1):
      start = sense * float(seen[core])
      line = _grow(away, seen, reach, (start, speed), known)
      cost = float(np.square(_at(line, away, reach) - seen).sum())
      lines.append((cost, line))
  path = Path(low, reach, *min(lines)[1])
  for _ in range(_ROUNDS):
    path = _refine(away, seen + low, path, edges, known)
  return path._replace(start=path.start - path.speed * time[core])


def _at(
  line: tuple[float, float], time: Num[np.ndarray, "n"], reach: float
) -> Float[np.ndarray, "n"]:
  return bounce.fold(line[0] + line[1] * time, reach)


def _grow(
  time: Int[np.ndarray, "n"],
  seen: Float[np.ndarray, "n"],
  reach: float,
  line: tuple[float, float],
  known: tuple[float, float] | None,
) -> tuple[float, float]:
  """Fits ever longer windows around frame 0, the last of which is all."""
  length, last = _FIRST // 2, np.abs(time).max()
  while True:
    chosen = np.abs(time) <= length
    for _ in range(_ROUNDS):
      line = _least(time[chosen], seen[chosen], reach, line, known)
    if length >= last:
      return line
    length *= 2


def _least(
  time: Int[np.ndarray, "n"],
  seen: Float[np.ndarray, "n"],
  reach: float,
  line: tuple[float, float],
  known: tuple[float, float] | None,
) -> tuple[float, float]:
  """Returns the least squares with half periods as a line has them."""
  guess = line[0] + line[1] * time
  half = np.floor(guess / reach)
  odd = half % 2 == 1
  unfolded = np.where(odd, (half + 1) * reach - seen, half * reach + seen)
  middle, mean = time.mean(), unfolded.mean()
  away = time - middle
  square, moment = float(away @ away), float(away @ (unfolded - mean))
  if known is not None:
    # What is known counts as much as frames that are off by 0.1 px.
    speed, deviation = known
    weight = (_NOISE / deviation) ** 2
    square += weight
    moment += weight * (speed if line[1] >= 0 else -speed)
  slope = moment / square if square > 0 else 0.0
  return float(mean - slope * middle), slope


def _refine(
  time: Int[np.ndarray, "n"],
  place: Float[np.ndarray, "n"],
  path: Path,
  edges: tuple[float, float],
  known: tuple[float, float] | None,
) -> Path:
  """Returns the least squares of start, speed and both edges.

  In an even half period m the unfolded place is p + m R, in an odd one it is
  (m + 1) R + 2 l - p; that is l + u0 + s t.
  """
  low, high = edges
  reach = max(high - low, _MIN_REACH)
  half = np.floor((path.start + path.speed * time) / path.reach)
  odd = half % 2 == 1
  unfolded = np.where(
    odd, (half + 1) * reach + 2 * low - place, half * reach + place
  )
  # What a higher upper and lower edge add to the unfolded place.
  upper = np.where(odd, half + 1, half)
  lower = np.where(odd, 1 - half, -half)
  rows = np.stack([np.ones(len(time)), time, -upper, -lower], -1)
  normal, right = rows.T @ rows, rows.T @ unfolded
  trust = (_NOISE / _EDGE) ** 2
  normal[2, 2] += trust
  normal[3, 3] += trust
  if known is not None:
    weight = (_NOISE / known[1]) ** 2
    normal[1, 1] += weight
    right[1] += weight * np.copysign(known[0], path.speed)
  start, speed, more_high, more_low = np.linalg.solve(
    normal + 1e-9 * np.eye(4), right
  )
  low = low + float(more_low)
  reach = max(high + float(more_high) - low, _MIN_REACH)
  return Path(low, reach, float(start) - low, float(speed))


def split_runs(mask: Bool[np.ndarray, "n"]) -> list[tuple[int, int]]:
  """Returns first and one past the last of each run of True.

  Args:
    mask: What is true of each frame.
  """
  edge = np.flatnonzero(np.diff(np.r_[0, mask.astype(np.int8), 0]))
  return [(int(a), int(b)) for a, b in edge.reshape(-1, 2)]
