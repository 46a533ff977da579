"""VBench's dimensions, and how their scores become one number.

The overall of long videos is the mean of six dimensions, as the paper takes it.
Quality, semantic and total score of short ones are weighted means of scores
that were brought to 0..1 between bounds; bounds and weights are those of
VBench's `scripts/constant.py`, and the means those of its
`scripts/cal_final_score.py` (github.com/Vchitect/VBench).
"""

from collections.abc import Iterable
from collections.abc import Mapping
import os
from typing import NamedTuple

from videomla_jax.storage import ordinary_files

MOST_BYTES = 256 * ordinary_files.MIB  # results list every clip of every video


class Dimension(NamedTuple):
  """How a score enters the totals.

  Attributes:
    quality: Whether it counts as quality; else as semantic.
    least: Score that becomes 0.
    most: Score that becomes 1.
    weight: Weight in its mean.
  """

  quality: bool
  least: float = 0.0
  most: float = 1.0
  weight: float = 1.0


DIMENSIONS: dict[str, Dimension] = {
  "subject_consistency": Dimension(True, 0.1462),
  "background_consistency": Dimension(True, 0.2615),
  "temporal_flickering": Dimension(True, 0.6293),
  "motion_smoothness": Dimension(True, 0.706, 0.9975),
  "dynamic_degree": Dimension(True, weight=0.5),
  "aesthetic_quality": Dimension(True),
  "imaging_quality": Dimension(True),
  "object_class": Dimension(False),
  "multiple_objects": Dimension(False),
  "human_action": Dimension(False),
  "color": Dimension(False),
  "spatial_relationship": Dimension(False),
  "scene": Dimension(False, 0.0, 0.8222),
  "appearance_style": Dimension(False, 0.0009, 0.2855),
  "temporal_style": Dimension(False, 0.0, 0.364),
  "overall_consistency": Dimension(False, 0.0, 0.364),
}
# The paper's six, in the order of its table.
SIX = (
  *("aesthetic_quality", "background_consistency", "dynamic_degree"),
  *("imaging_quality", "motion_smoothness", "subject_consistency"),
)
_QUALITY_SHARE = 0.8  # of the total; the rest is semantic


def totals(scores: Mapping[str, float]) -> dict[str, float]:
  """Returns every total whose dimensions are all there.

  Args:
    scores: Score of each dimension that was judged, 0..1.

  Returns:
    Any of "overall" (mean of the six), "quality", "semantic", "total" (VBench's
    own, four parts of quality to one of semantic) and "mean" (of the two, which
    is what the paper's numbers show as total).
  """
  found: dict[str, float] = {}
  if {*SIX} <= {*scores}:
    found["overall"] = sum(scores[x] for x in SIX) / len(SIX)
  for name, is_quality in (("quality", True), ("semantic", False)):
    part = {k: v for k, v in DIMENSIONS.items() if v.quality is is_quality}
    if {*part} <= {*scores}:
      weights = sum(x.weight for x in part.values())
      found[name] = (
        sum(x.weight * _scaled(scores[k], x) for k, x in part.items()) / weights
      )
  if {"quality", "semantic"} <= {*found}:
    quality, semantic = found["quality"], found["semantic"]
    found["total"] = _QUALITY_SHARE * quality + (1 - _QUALITY_SHARE) * semantic
    found["mean"] = (quality + semantic) / 2
  return found


def _scaled(score: float, dimension: Dimension) -> float:
  """Brings a score to 0..1 between its bounds; VBench does not clip it."""
  return (score - dimension.least) / (dimension.most - dimension.least)


def read_results(path: str | os.PathLike[str]) -> dict[str, float]:
  """Reads the scores of a file of results that VBench wrote.

  Args:
    path: JSON that maps each dimension to a list, whose first element is the
      score (`NAME_eval_results.json`).

  Raises:
    ValueError: If it is no such file.
  """
  at = f"results file {os.fspath(path)!r}"
  try:
    content = ordinary_files.read_json(path, limit=MOST_BYTES)
  except ordinary_files.BadFile as error:
    raise ValueError(
      f"{at} {error}; give a file NAME_eval_results.json of VBench."
    ) from error
  found = {name: _score(name, x, at=at) for name, x in content.items()}
  if not found:
    raise ValueError(f"{at} has no dimension; let VBench judge again.")
  return found


def _score(name: str, value: object, *, at: str) -> float:
  """Checks the score of one dimension."""
  if name not in DIMENSIONS:
    raise ValueError(
      f"{at} has {name!r}, which is no dimension of VBench; give a file"
      " NAME_eval_results.json of VBench."
    )
  score = value[0] if isinstance(value, list) and value else None
  # A NaN fails the comparison, and true is no score.
  if (
    not isinstance(score, (int, float))
    or isinstance(score, bool)
    or not 0 <= score <= 1
  ):
    raise ValueError(
      f"{at} has {score!r} as the score of {name}, which must lie in 0..1; let"
      " VBench judge again."
    )
  return float(score)


def join(
  results: Iterable[tuple[str, Mapping[str, float]]],
) -> dict[str, float]:
  """Joins the scores of several files.

  Args:
    results: Scores, each with the name of what they come from.

  Raises:
    ValueError: If two of them give a dimension different scores.
  """
  found: dict[str, tuple[str, float]] = {}
  for source, scores in results:
    for name, score in scores.items():
      first, value = found.setdefault(name, (source, score))
      if value != score:
        raise ValueError(
          f"{name} is {value:.4f} in {first} and {score:.4f} in {source}; give"
          " results of the same videos."
        )
  return {name: score for name, (_, score) in found.items()}
