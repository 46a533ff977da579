"""Tables of measures of the colour world, with 95 % intervals over videos.

Videos are a sample, and values of one video belong together, so intervals come
from drawing whole videos again (bootstrap, Efron 1979). Where every value is 0
or 1, and 1 is the most, the interval is Wilson's (1927): a bootstrap of equal
values has no width.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import NamedTuple

from jaxtyping import Float, Num
import numpy as np

from videomla_jax.small_world.colour import glyphs
from videomla_jax.small_world.colour import measures as measures_lib
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import prompts as prompts_lib

_DRAWS = 2000  # the ends of an interval then vary by 2 % of its width
_TAIL = 0.025
_POINT = 1.96  # of the normal distribution
_FEWEST = 3  # values for an interval

# What is told about memory in the table of rows that differ in it.
MEMORY_ROWS = tuple(
  f"{name}{kind}"
  for kind in ("", *(f"_{kind}" for kind in measures_lib.HIDDEN))
  for name in (*(x for x in measures_lib.MEASURES if x.startswith("memory")),)
)

Measures = Mapping[str, Float[np.ndarray, "V"]]


class Summary(NamedTuple):
  """Mean of one measure over the videos to which it applies.

  Attributes:
    mean: The mean; NaN if it applies to none.
    low: Lower end of the 95 % interval; NaN of one or two videos.
    high: Its upper end.
    n: Videos to which it applies.
    total: Sum over videos, for numbers of events.
  """

  mean: float
  low: float
  high: float
  n: int
  total: float

  def text(self) -> str:
    """Returns the mean with its interval, for a table."""
    if not self.n:
      return "-"
    if math.isnan(self.low):
      return f"{self.mean:.3f}"
    return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def summarise(measures: Measures, *, seed: int = 0) -> dict[str, Summary]:
  """Returns mean, interval and number of videos of each measure.

  Args:
    measures: What `measures.measure` returned.
    seed: Seed of the bootstrap.
  """
  return {
    name: interval(x, is_share=_is_share(name), seed=seed)
    for name, x in measures.items()
  }


def interval(
  values: Float[np.ndarray, "V"], *, is_share: bool, seed: int = 0
) -> Summary:
  """Returns the mean of what is not NaN, with its 95 % interval.

  Args:
    values: One value of each video.
    is_share: Whether the greatest possible value is 1 and the least 0.
    seed: Seed of the bootstrap.
  """
  found = values[~np.isnan(values)]
  n = len(found)
  if not n:
    return Summary(math.nan, math.nan, math.nan, 0, 0.0)
  mean, total = float(found.mean()), float(found.sum())
  if n < _FEWEST:
    return Summary(mean, math.nan, math.nan, n, total)
  if is_share and np.isin(found, (0.0, 1.0)).all():
    low, high = wilson(mean, n)
  else:
    rng = np.random.default_rng(seed)
    means = found[rng.integers(n, size=(_DRAWS, n))].mean(1)
    low, high = map(float, np.quantile(means, (_TAIL, 1 - _TAIL)))
  return Summary(mean, low, high, n, total)


def wilson(share: float, n: int) -> tuple[float, float]:
  """Returns the 95 % interval of a share of n independent cases.

  Args:
    share: Share of cases, 0..1.
    n: Cases, at least one.
  """
  square = _POINT**2 / n
  middle = (share + square / 2) / (1 + square)
  half = (
    _POINT / (1 + square) * math.sqrt(share * (1 - share) / n + square / 4 / n)
  )
  return max(0.0, middle - half), min(1.0, middle + half)


def judge_colour(
  videos: Num[np.ndarray, "V T 64 64 3"],
  prompts: Sequence[prompts_lib.Prompt],
  judge: glyphs.Reader,
  fps: int | float = motion.FPS,
) -> dict[str, Summary]:
  """Measures videos and summarises them; arguments as of `measure`."""
  return summarise(measures_lib.measure(videos, prompts, judge, fps))


def table(
  rows: Mapping[str, Mapping[str, Summary]],
  *,
  windows: Sequence[str] = ("first", "last"),
) -> str:
  """Writes summaries side by side as Markdown, with intervals.

  Args:
    rows: What `summarise` returned, by the name of what was measured.
    windows: Windows to show.

  Returns:
    One line for each measure and window, one column for each row.
  """
  lines = [
    " | ".join(["| measure", "window", *rows, "meaning |"]),
    "|---" * (len(rows) + 3) + "|",
  ]
  for name, meaning in measures_lib.MEASURES.items():
    for window in windows if name not in measures_lib.AT_START else ("",):
      key = f"{name}/{window}" if window else name
      cells = [_cell(key, row[key]) for row in rows.values()]
      lines.append(" | ".join([f"| {name}", window, *cells, f"{meaning} |"]))
  return "\n".join(lines)


def memory_table(
  rows: Mapping[str, Measures], *, window: str = "all", seed: int = 0
) -> str:
  """Compares what several sets of videos remember, as Markdown.

  Such sets are videos of the same prompts by models that differ in what they
  may look at: a window without and with a sink, or everything. Where sets have
  as many videos, differences from the first set are taken video by video.

  Args:
    rows: What `measure` returned of each set, by its name.
    window: Window of the measures.
    seed: Seed of the bootstrap.

  Returns:
    One line for each measure of memory, for all absences and for those that
    lasted at most, and more than, 1.75 s.

  Raises:
    ValueError: If there is no set.
  """
  if not rows:
    raise ValueError("rows is empty; give at least one set of videos.")
  first, *others = rows
  heads = [*rows, *(f"{name} - {first}" for name in others)]
  lines = [
    " | ".join(["| measure", *heads]) + " |",
    "|---" * (len(heads) + 1) + "|",
  ]
  for name in MEMORY_ROWS:
    key = f"{name}/{window}"
    found = [summarise({key: row[key]}, seed=seed) for row in rows.values()]
    cells = [_cell(key, x[key]) for x in found]
    cells += [_difference(rows[x][key], rows[first][key], seed) for x in others]
    lines.append(" | ".join([f"| {name}", *cells]) + " |")
  return "\n".join(lines)


def compare(
  sets: Mapping[str, Num[np.ndarray, "V T 64 64 3"]],
  prompts: Sequence[prompts_lib.Prompt],
  judge: glyphs.Reader,
  fps: int | float = motion.FPS,
) -> str:
  """Measures several sets of videos of the same prompts, see `memory_table`.

  Args:
    sets: Videos by the name of a set.
    prompts: What each video of every set should show.
    judge: A trained reader of digits.
    fps: Frames per second.
  """
  rows = {
    name: measures_lib.measure(videos, prompts, judge, fps)
    for name, videos in sets.items()
  }
  return memory_table(rows)


def _cell(key: str, summary: Summary) -> str:
  if key.startswith("memory_events"):
    return f"{summary.total:.0f}"
  return summary.text()


def _difference(
  values: Float[np.ndarray, "V"], base: Float[np.ndarray, "other"], seed: int
) -> str:
  """Returns the mean difference of videos that both have, with its interval."""
  if len(values) != len(base):
    return "-"
  return interval(values - base, is_share=False, seed=seed).text()


def _is_share(name: str) -> bool:
  """Tells shares from pixels, levels, ratios and numbers."""
  others = ("_px", "_error", "_ratio", "_events")
  return not any(other in name for other in others)
