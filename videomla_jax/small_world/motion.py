"""Measures of motion: where the ink is, and whether it moves as it should.

A track is the ink's centroid; since a digit keeps its shape, the track of a
real clip is its motion exactly, but for a constant offset of the handwriting.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float
import numpy as np

from videomla_jax.small_world import bounce
from videomla_jax.small_world import prompts as prompts_lib
from videomla_jax.small_world import world

MIN_INK = 3.0  # of about 19; less has no position

_WORLD = world.World()
_TOLERANCE_PX = 2.0  # half a lattice step
_THRESHOLD = 0.2  # fainter pixels are noise, and would pull the centroid
_MAX_OFFSET_PX = 1.5  # centroid of a real digit against its box: at most 1.3
_AXES = {"horizontal": (1, 0), "vertical": (0, 1), "diagonal": (1, 1)}


class Track(NamedTuple):
  """Holds where the ink of every frame is.

  Attributes:
    position: Column x and row y of the 8x8 box around the ink, pixels.
    visible: Whether there is enough ink to have a position.
  """

  position: Float[np.ndarray, "V T 2"]
  visible: Bool[np.ndarray, "V T"]


def track_ink(videos: Float[np.ndarray, "V T 24 24 1"]) -> Track:
  """Follows the centroid of the ink.

  Args:
    videos: Grey videos in [0, 1].

  Returns:
    Centroid as the corner of a box around it, and whether there is enough ink
    to have one; without, the position is that of a box in the middle.
  """
  ink = np.where(videos[..., 0] > _THRESHOLD, videos[..., 0], 0.0)
  total = ink.sum((2, 3))
  corner = np.arange(ink.shape[-1]) - (_WORLD.sprite_size - 1) / 2
  moments = np.stack([ink.sum(2) @ corner, ink.sum(3) @ corner], axis=-1)
  visible = total >= MIN_INK
  position = moments / np.maximum(total, MIN_INK)[..., None]
  middle = _WORLD.reach / 2
  return Track(np.where(visible[..., None], position, middle), visible)


def motion_measures(
  track: Track, prompts: Sequence[prompts_lib.Prompt]
) -> dict[str, Float[np.ndarray, "V"]]:
  """Compares steps between frames with the prompt's direction and speed.

  A pair with an invisible frame has no step: it is left out of the means and
  counts as disobeyed in `steps`.

  Args:
    track: Positions in one window.
    prompts: What each video should show.

  Returns:
    direction, direction_error, speed, speed_ratio, speed_px, steps,
    dynamic_px.
  """
  axes = np.array([_AXES[prompt.direction] for prompt in prompts])
  nominal = np.array([_WORLD.speed(prompt) for prompt in prompts])
  step = np.diff(track.position, axis=1)
  both = track.visible[:, 1:] & track.visible[:, :-1]
  count = np.maximum(both.sum(1), 1)
  moved = (np.abs(step) * both[..., None]).sum(1) / count[:, None]
  # This is the vertical share of the motion: 0 is horizontal, 1/2 is diagonal
  # and 1 is vertical.
  balance = moved[:, 1] / np.maximum(moved.sum(1), 1e-6)
  moves = np.stack([balance < 0.75, balance > 0.25], axis=-1)
  # Noise moves the centroid by a fraction of a pixel; that is no direction.
  alive = moved.max(1) > 1.0
  error = np.abs(balance - axes[:, 1] / axes.sum(1))
  speed = (moved * moves).sum(1) / moves.sum(1)
  wanted = (axes * nominal[:, None])[:, None]
  obeyed = (np.abs(np.abs(step) - wanted) < _TOLERANCE_PX).all(-1) & both
  return {
    "direction": ((moves == axes).all(1) & alive).astype(float),
    "direction_error": np.where(alive, error, 1.0),
    "speed": (np.abs(speed - nominal) < _TOLERANCE_PX).astype(float),
    "speed_ratio": speed / nominal,
    "speed_px": speed,
    "steps": obeyed.mean(1),
    "dynamic_px": (np.linalg.norm(step, axis=-1) * both).sum(1) / count,
  }


def path_measures(track: Track) -> dict[str, Float[np.ndarray, "V"]]:
  """Measures the distance from the nearest lawful motion, whatever the prompt.

  All motions of the world are tried: each axis rests or bounces, with one
  speed, from any start. An invisible frame is as far off as the world allows.

  Args:
    track: Positions in one window.

  Returns:
    residual_px, on_path.
  """
  num_frames = track.position.shape[1]
  costs, distances = [], []
  for paths in _axis_paths(num_frames):
    cost, distance = _fit_axis(track, paths)
    costs.append(cost)
    distances.append(distance)
  # At least one axis moves, and if both move they have one speed, since a
  # prompt names only one.
  rest, slow, fast = range(3)
  pairs = [(g, h) for g in (slow, fast) for h in (g, rest)]
  pairs += [(rest, slow), (rest, fast)]
  total = np.stack([costs[g][:, 0] + costs[h][:, 1] for g, h in pairs])
  offsets = np.stack(
    [np.hypot(distances[g][..., 0], distances[h][..., 1]) for g, h in pairs]
  )
  best = total.argmin(0)
  offset = offsets[best, np.arange(len(best))]
  offset = np.where(track.visible, offset, _WORLD.reach)
  return {
    "residual_px": np.sqrt((offset**2).mean(1)),
    "on_path": (offset < _TOLERANCE_PX).mean(1),
  }


def _axis_paths(num_frames: int) -> list[Float[np.ndarray, "p T"]]:
  """Returns all motions of one axis: resting, slow and fast."""
  reach, time = _WORLD.reach, np.arange(num_frames)
  rest = np.arange(0, reach + 1, _WORLD.lattice, dtype=float)
  paths = [np.repeat(rest[:, None], num_frames, axis=1)]
  for speed in (_WORLD.slow, _WORLD.fast):
    start = np.arange(0, 2 * reach, speed)[:, None]  # a phase: both senses
    paths.append(bounce.fold(start + speed * time, reach).astype(float))
  return paths


def _fit_axis(
  track: Track, paths: Float[np.ndarray, "p T"]
) -> tuple[Float[np.ndarray, "V 2"], Float[np.ndarray, "V T 2"]]:
  """Finds the best path of each axis, free of the handwriting's offset.

  Args:
    track: Positions in one window.
    paths: Candidates for one axis.

  Returns:
    Sum of squared distances over the visible frames, and every distance.
  """
  away = track.position[:, None] - paths[None, :, :, None]  # [V, p, T, 2]
  seen = track.visible[:, None, :, None]
  count = np.maximum(seen.sum(2, keepdims=True), 1)
  shift = (away * seen).sum(2, keepdims=True) / count
  # Handwriting lies off the middle of its box, by a bounded constant.
  away = away - np.clip(shift, -_MAX_OFFSET_PX, _MAX_OFFSET_PX)
  # Invisible frames have no position, so they do not choose the path.
  cost = (away**2 * seen).sum(2)  # [V, p, 2]
  best = cost.argmin(1)[:, None]  # [V, 1, 2]
  chosen = np.take_along_axis(away, best[:, :, None], axis=1)
  return np.take_along_axis(cost, best, axis=1)[:, 0], chosen[:, 0]
