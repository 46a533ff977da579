"""Chooses the videos of a data set and counts those that it leaves out.

Every rule is named by a field of `Filters`, and every video that is left out is
counted under the first rule that it fails. Rules about what a table lists are
applied before any file is opened, the others to the file itself.
"""

import collections
from collections.abc import Mapping
import dataclasses

from videomla_jax.data import table as table_lib

Facts = Mapping[str, float | int | str | None]

_LISTED = (
  "aesthetic_score",
  "motion_score",
  "temporal_consistency_score",
  "camera_motion",
)  # what only a table can know

NO_CAPTION = "no caption"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters:
  """Bounds of what is taken, inclusive; 0 or empty is no bound.

  Attributes:
    min_height: Fewest pixel rows, as displayed.
    min_width: Fewest pixel columns, as displayed.
    min_fps: Lowest rate of the file, frames per second.
    max_fps: Highest rate of the file, frames per second.
    min_seconds: Shortest length of the video, or of the segment.
    max_seconds: Longest length of the video, or of the segment.
    min_aesthetic_score: Lowest aesthetic score that the table lists.
    min_motion_score: Lowest motion score that the table lists.
    max_motion_score: Highest motion score that the table lists.
    min_temporal_consistency_score: Lowest such score that the table lists.
    camera_motion: Kinds of motion that are taken; empty takes all.
  """

  min_height: int = 0
  min_width: int = 0
  min_fps: float | int = 0
  max_fps: float | int = 0
  min_seconds: float | int = 0
  max_seconds: float | int = 0
  min_aesthetic_score: float | int = 0
  min_motion_score: float | int = 0
  max_motion_score: float | int = 0
  min_temporal_consistency_score: float | int = 0
  camera_motion: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    for name, bound in self._bounds().items():
      if bound < 0:
        raise ValueError(f"filters.{name}={bound} must not be negative; use 0.")
      upper = getattr(self, name.replace("min_", "max_"), 0)
      if name.startswith("min_") and 0 < upper < bound:
        raise ValueError(
          f"filters.{name}={bound} exceeds its upper bound {upper}, which"
          " leaves nothing; lower it."
        )

  def _bounds(self) -> dict[str, float | int]:
    values = dataclasses.asdict(self)
    del values["camera_motion"]
    return values

  def asked(self) -> set[str]:
    """Returns the names of the facts that some rule asks for."""
    asked = {name[4:] for name, bound in self._bounds().items() if bound}
    return asked | ({"camera_motion"} if self.camera_motion else set())

  def failure(self, facts: Facts) -> str | None:
    """Returns the first rule that a video fails, None if it fails none.

    Args:
      facts: What is known of the video by name. A fact that is None fails every
        rule about it; a fact that is absent is not looked at.
    """
    for name, bound in self._bounds().items():
      fact = name[4:]  # without min_ or max_
      if not bound or fact not in facts:
        continue
      value = facts[fact]
      if value is None:
        return f"no {fact}"
      assert not isinstance(value, str)  # only kinds of motion are
      if value < bound if name.startswith("min_") else value > bound:
        return name
    motion = facts.get("camera_motion")
    if self.camera_motion and motion is not None:
      return None if motion in self.camera_motion else "camera_motion"
    return None


def select(
  table: table_lib.Table, filters: Filters
) -> tuple[list[table_lib.Item], dict[str, int]]:
  """Applies the rules that need no open file.

  Args:
    table: All videos.
    filters: Rules to apply.

  Returns:
    The videos that are left, and how many each rule took out, those included
    that were counted when the table was read.

  Raises:
    ValueError: If a rule asks for a column that the table lacks, or nothing is
      left.
  """
  # Without this check every row would fail a rule about a missing column.
  absent = sorted(filters.asked() & set(_LISTED) - table.columns)
  if absent:
    raise ValueError(
      f"{table.source!r} lacks the columns {absent} that config.filters asks"
      " for; add them to the table or set these filters to 0."
    )
  kept, excluded = [], collections.Counter[str](table.excluded)
  known = set()
  for item in table.items:
    # Segments of a video differ by their start, prompts by their text.
    key = (item.video, item.start) if item.video else item.caption
    reason = (
      table_lib.DUPLICATE if key in known else _listed_failure(item, filters)
    )
    known.add(key)
    if reason is None:
      kept.append(item)
    else:
      excluded[reason] += 1
  if not kept:
    for about in table.set_aside:
      excluded[about.reason] += 1
    raise ValueError(
      f"{table.source!r} has {excluded.total()} rows and none is left:"
      f" {dict(excluded.most_common(20))}; relax config.filters or complete the"
      " table."
    )
  return kept, dict(excluded)


def _listed_failure(item: table_lib.Item, filters: Filters) -> str | None:
  """Returns the first rule that the listed facts of a video fail."""
  if not item.caption:
    return NO_CAPTION
  facts = {name: getattr(item, name) for name in _LISTED}
  # The file itself is asked for what the table does not say.
  for name in ("fps", "seconds"):
    if getattr(item, name) is not None:
      facts[name] = getattr(item, name)
  return filters.failure(facts)
