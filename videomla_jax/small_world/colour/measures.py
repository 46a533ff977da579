"""Measures of videos of the colour world, for which only a prompt is known.

Digits are found by their colours (`observe`), followed (`tracks`), and compared
with the prompt and with the motion of the world (`moving`), and what comes out
from behind a wall with what went in (`memory`). `summaries` makes tables with
intervals. `MEASURES` says what each measure is; a measure that does not apply
to a video is NaN.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Float, Num
import numpy as np

from videomla_jax.small_world import measures as small_measures
from videomla_jax.small_world.colour import glyphs
from videomla_jax.small_world.colour import memory
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import moving
from videomla_jax.small_world.colour import observe
from videomla_jax.small_world.colour import prompts as prompts_lib
from videomla_jax.small_world.colour import tracks

MEASURES = {
  "count": "share of frames with as many digits as have to be seen",
  "colour": "share of these digits, as far as they are there, in their colours",
  "identity": "share of frames in which a whole digit is the prompt's",
  "consistency": "share of frames in which a whole digit is its commonest",
  "direction": "share of digits that first move as the prompt says",
  "speed": "share of digits within a tenth of the prompt's speed on all axes",
  "speed_ratio": "speed / the prompt's speed, along moving axes",
  "residual_px": "RMS distance from the best uniform motion with bounces, px",
  "jumps": "share of steps at least 1.5 px longer than usual",
  "jitter_px": "noise of positions from frame to frame, px",
  "bounce": "share of contacts with an edge that mirror the velocity",
  "background": "share of frames with the prompt's background",
  "background_error": "difference from it, levels of 255",
  "wall": "share of frames with the prompt's wall, or none",
  "wall_px": "distance of its edges from those of most frames, px",
  "memory": "share of digits that come out of the wall, all right",
  "memory_out": "share that come out, at most a second late",
  "memory_colour": "of these, share in the prompt's colour",
  "memory_same": "of these, share that are the digit that went in",
  "memory_identity": "of these, share that are the prompt's digit",
  "memory_place": "of these, share within 2 px of their path",
  "memory_px": "of these, distance from their path, px",
  "memory_events": "times that a digit was behind the wall, per video",
}
# Measures that have to do with the beginning alone.
AT_START = ("direction",)
# By name what memory is also taken of: hidden for at most, or more than 1.75 s.
HIDDEN: dict[str, Callable[[memory.Event], bool]] = {
  "short": lambda event: event.hidden <= memory.WINDOW_FRAMES,
  "long": lambda event: event.hidden > memory.WINDOW_FRAMES,
}
WINDOWS = ("all", "first", "last")

NUM_BACKGROUNDS = len(prompts_lib.BACKGROUNDS)  # plain ones, then graded
_MIN_FRAMES = 16  # a second
_NAN = float("nan")


class Judged(NamedTuple):
  """What was found in one video.

  Attributes:
    followed: Its digits.
    events: Each time that one was behind the wall.
    bounces: Of each digit, frames of contacts and whether each was right.
    excused: Where each digit may be unseen.
  """

  followed: tracks.Followed
  events: list[memory.Event]
  bounces: list[list[tuple[int, bool]]]
  excused: Num[np.ndarray, "things T"]


def measure(
  videos: Num[np.ndarray, "V T 64 64 3"],
  prompts: Sequence[prompts_lib.Prompt],
  judge: glyphs.Reader,
  fps: int | float = motion.FPS,
) -> dict[str, Float[np.ndarray, "V"]]:
  """Takes every measure of every video in every window.

  Args:
    videos: Pixels, whole numbers 0..255 or fractions 0..1.
    prompts: What each video should show.
    judge: A trained reader of digits.
    fps: Frames per second; sets the first and the last ten seconds.

  Returns:
    One value for each video by "measure/window"; measures of `AT_START` have
    no window, and those of memory are also there as "memory_out_long/all", for
    the keys of `HIDDEN`.

  Raises:
    ValueError: If counts differ, pixels are out of range, or videos too short.
  """
  return measure_judged(examine(videos, prompts, judge), prompts, fps)


def measure_judged(
  judged: Sequence[Judged],
  prompts: Sequence[prompts_lib.Prompt],
  fps: int | float = motion.FPS,
) -> dict[str, Float[np.ndarray, "V"]]:
  """Makes numbers of what was found, see `measure`.

  Args:
    judged: What `examine` returned.
    prompts: What each video should show.
    fps: Frames per second; sets the first and the last ten seconds.
  """
  num_frames = len(judged[0].followed.seen.ink)
  windows = small_measures.time_windows(num_frames, fps)
  rows: dict[str, list[float]] = {}
  for one, prompt in zip(judged, prompts, strict=True):
    values = {"direction": _mean(map(moving.direction, one.followed.things))}
    for name in WINDOWS:
      part = _of_scene(one, prompt, windows[name])
      part |= _of_things(one, windows[name]) | _of_memory(one, windows[name])
      values |= {f"{key}/{name}": value for key, value in part.items()}
    for key, value in values.items():
      rows.setdefault(key, []).append(value)
  return {key: np.array(values) for key, values in rows.items()}


def examine(
  videos: Num[np.ndarray, "V T 64 64 3"],
  prompts: Sequence[prompts_lib.Prompt],
  judge: glyphs.Reader,
) -> list[Judged]:
  """Returns what is found in each video, of which `measure` makes numbers.

  Args:
    videos: Pixels, whole numbers 0..255 or fractions 0..1.
    prompts: What each video should show.
    judge: A trained reader of digits.

  Raises:
    ValueError: If counts differ, pixels are out of range, or videos too short.
  """
  small_measures.require_videos(
    videos, prompts, fewest=_MIN_FRAMES, why=f"a second has {_MIN_FRAMES}"
  )
  found = []
  for seen in tracks.follow(observe.observe(videos), prompts, judge):
    events, followed = memory.events(seen)
    found.append(
      Judged(
        followed=followed,
        events=events,
        bounces=[moving.bounces(followed, x) for x in followed.things],
        excused=memory.excused(followed, events),
      )
    )
  return found


def _of_scene(
  judged: Judged, prompt: prompts_lib.Prompt, window: slice
) -> dict[str, float]:
  """Measures how many digits there are, the background and the wall."""
  followed, seen = judged.followed, judged.followed.seen
  there = np.stack([x.seen for x in followed.things])[:, window]
  due = there | ~judged.excused[:, window]
  others = np.stack([x.seen for x in followed.others])[:, window].sum(0)
  # More of a colour elsewhere is one thing more.
  more = (seen.extra[window] >= tracks.FOREIGN_INK).sum(1)
  found = there.sum(0) + others + more
  right = np.stack([x.colour == x.asked_colour for x in followed.things])
  matched = (there & right[:, window]).sum(0)
  possible = np.minimum(found, due.sum(0))
  some = possible > 0
  number = prompts_lib.BACKGROUNDS.index(prompt.background)
  if prompt.style == "graded":
    number += NUM_BACKGROUNDS
  wall = seen.wall[window]
  as_asked = _kinds(wall) == prompt.wall
  away = np.abs(wall - followed.wall).max(1)
  same = as_asked & (wall[:, 1] > 0) & bool(prompt.wall)
  return {
    "count": float((found == due.sum(0)).mean()),
    "colour": _mean((matched / np.maximum(possible, 1))[some]),
    "background": float((seen.background[window] == number).mean()),
    "background_error": float(seen.error[window, number].mean()),
    "wall": float(as_asked.mean()),
    "wall_px": _mean(away[same]),
  }


def _of_things(judged: Judged, window: slice) -> dict[str, float]:
  """Measures each digit, and returns means over the digits of a video."""
  rows = []
  for thing in judged.followed.things:
    whole = thing.whole[window]
    read = thing.said[window][whole].argmax(1)
    commonest = np.bincount(read, minlength=10).argmax()
    values = {
      "identity": _mean(read == thing.asked.digit),
      "consistency": _mean(read == commonest),
    }
    values |= moving.speeds(thing, window) | moving.smoothness(thing, window)
    rows.append(values)
  found = {key: _mean([row[key] for row in rows]) for key in rows[0]}
  contacts = [x for thing in judged.bounces for x in thing]
  inside = [right for time, right in contacts if _within(time, window)]
  return found | {"bounce": _mean(inside)}


def _of_memory(judged: Judged, window: slice) -> dict[str, float]:
  """Measures what came out of the wall in a window."""
  # An event is counted when it has to come out.
  events = [x for x in judged.events if _within(x.due, window)]
  values: dict[str, float] = {}
  for kind, belongs in {"": lambda event: True, **HIDDEN}.items():
    chosen = [x for x in events if belongs(x)]
    name = f"_{kind}" if kind else ""
    values |= {
      f"memory{name}": _mean([x.right for x in chosen]),
      f"memory_out{name}": _mean([x.out for x in chosen]),
      f"memory_colour{name}": _mean([x.colour for x in chosen]),
      f"memory_same{name}": _mean([x.same for x in chosen]),
      f"memory_identity{name}": _mean([x.identity for x in chosen]),
      f"memory_place{name}": _mean([x.place for x in chosen]),
      f"memory_px{name}": _mean([x.error for x in chosen]),
      f"memory_events{name}": float(len(chosen)),
    }
  return values


def _within(frame: int, window: slice) -> bool:
  # What has to come out at the very end may be due one frame after it.
  return window.start <= min(frame, window.stop - 1) and frame <= window.stop


def _kinds(wall: Float[np.ndarray, "T 2"]) -> np.ndarray:
  """Returns the prompt's word for the wall in each frame."""
  left, right = wall[:, 0] <= 1, wall[:, 1] >= motion.SIZE - 1
  there = wall[:, 1] > wall[:, 0]
  kinds = np.select(
    [left & ~right, right & ~left, ~left & ~right],
    ["left", "right", "middle"],
    "all",
  )
  return np.where(there, kinds, "")


def _mean(values: Iterable[Any]) -> float:
  """Returns the mean of what is not NaN, or NaN."""
  array = np.asarray([*values], float)
  array = array[~np.isnan(array)]
  return float(array.mean()) if len(array) else _NAN
