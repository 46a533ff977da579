"""What the judge of the colour world gets wrong where the truth is known."""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from videomla_jax.small_world.colour import measures
from videomla_jax.small_world.colour import tracks
from videomla_jax.small_world.colour import world

ERRORS = {
  "whole": "share of frames in which a digit is whole to the judge",
  "whole_missed": "share of frames with a whole digit that it calls not whole",
  "whole_wrong": "share of its whole digits of which less than 98 % is seen",
  "position_px": "mean distance of their centroids from the truth, px",
  "position_99_px": "99 % of the distances are below this, px",
  "position_max_px": "greatest distance, px",
  "identity_error": "share of whole digits that are misread",
  "identity_error_of_digits": "share of digits misread by all frames together",
  "wall_px": "greatest error of an edge of the wall, px",
  "background_error": "share of frames with the wrong background",
  "events": "times that a digit was behind the wall",
  "event_wrong": "share of them that are called wrong in any way",
  "event_unknown": "share that cannot be told, as digits overlap",
  "event_mean_px": "mean distance from the predicted path, px",
  "event_max_px": "greatest distance, px",
  "event_hidden": "greatest error of the frames that it was hidden for",
}
_SEEN = 0.98  # share of a digit's ink


def errors(
  judged: Sequence[measures.Judged], truth: world.Truth
) -> dict[str, float]:
  """Compares what is found in real clips with the truth, see `ERRORS`.

  Args:
    judged: What `measures.examine` returned of real or damaged clips.
    truth: What is true of them.
  """
  whole, missed, wrong, away, misread, digits = [], [], [], [], [], []
  for i, one in enumerate(judged):
    for k, thing in enumerate(one.followed.things):
      seen = truth.visible[i, :, k] >= _SEEN
      whole.append(thing.whole)
      missed.append(~thing.whole[seen])
      wrong.append(~seen[thing.whole])
      place = truth.position[i, :, k] + truth.offset[i, k]
      away.append(np.hypot(*(thing.centre - place)[thing.whole].T))
      said = thing.said[thing.whole]
      misread.append(said.argmax(1) != truth.digit[i, k])
      if len(said):
        digits.append(tracks.word(said) != truth.digit[i, k])
  distance = np.concatenate(away)
  wall = [np.abs(x.followed.wall - truth.wall[i]) for i, x in enumerate(judged)]
  number = truth.background + measures.NUM_BACKGROUNDS * truth.graded
  grounds = [
    x.followed.seen.background != number[i] for i, x in enumerate(judged)
  ]
  return {
    "whole": _mean(whole),
    "whole_missed": _mean(missed),
    "whole_wrong": _mean(wrong),
    "position_px": float(distance.mean()),
    "position_99_px": float(np.quantile(distance, 0.99)),
    "position_max_px": float(distance.max()),
    "identity_error": _mean(misread),
    "identity_error_of_digits": float(np.mean(digits)),
    "wall_px": float(np.max(wall)),
    "background_error": _mean(grounds),
    **_of_events(judged, truth),
  }


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
  """Writes errors side by side as Markdown.

  Args:
    rows: What `errors` returned, by the name of what was judged.
  """
  lines = [
    " | ".join(["| error", *rows, "meaning |"]),
    "|---" * (len(rows) + 2) + "|",
  ]
  for name, meaning in ERRORS.items():
    cells = [f"{row[name]:.4g}" for row in rows.values()]
    lines.append(" | ".join([f"| {name}", *cells, f"{meaning} |"]))
  return "\n".join(lines)


def _of_events(
  judged: Sequence[measures.Judged], truth: world.Truth
) -> dict[str, float]:
  """Compares absences behind the wall; all of real clips are right."""
  every = [(i, x) for i, one in enumerate(judged) for x in one.events]
  right = np.array([x.right for _, x in every])
  away = np.array([x.error for _, x in every])
  hidden = [
    abs(x.hidden - truth.hidden[i, max(0, x.first - 8) : x.due, x.thing].sum())
    for i, x in every
  ]
  known = away[~np.isnan(away)]
  return {
    "events": float(len(every)),
    "event_wrong": float((right == 0).mean()) if every else 0.0,
    "event_unknown": float(np.isnan(right).mean()) if every else 0.0,
    "event_mean_px": float(known.mean()) if len(known) else 0.0,
    "event_max_px": float(known.max(initial=0.0)),
    "event_hidden": float(max(hidden, default=0)),
  }


def _mean(parts: Sequence[np.ndarray]) -> float:
  return float(np.concatenate(parts).mean())
