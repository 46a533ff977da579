"""The tables of an ablation, from its record."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import NamedTuple

from videomla_jax.ablations import plan
from videomla_jax.ablations import statistics
from videomla_jax.measuring import record

# Column -> (key of a line, decimals).
MEASURES = {
  "held-out loss": ("loss", 4),
  "identity": ("identity", 3),
  "count": ("count", 3),
  "steps": ("steps", 3),
}


class Row(NamedTuple):
  """The lines of a setting, one for each seed.

  Attributes:
    name: Name of the setting.
    lines: Its lines by seed.
  """

  name: str
  lines: Mapping[int, record.Line]

  @property
  def first(self) -> record.Line:
    """A line; what all of them share is in it."""
    return next(iter(self.lines.values()))

  @property
  def budget(self) -> str:
    """What the models were trained with, in words."""
    line = self.first
    if "training_steps" not in line:
      return "none"
    later = "".join(
      f", then {steps:,} of {title}"
      for title, steps in line.get("later_steps", {}).items()
    )
    return (
      f"{line['training_steps']:,} steps of {line['batch']} clips of "
      f"{line['frames']} frames, {line['data']}{later}"
    )

  def values(self, key: str) -> dict[int, float]:
    """Returns a measure by seed, without lines that lack it.

    Args:
      key: Name of the measure.
    """
    return {
      seed: float(line[key])
      for seed, line in self.lines.items()
      if line.get(key) is not None
    }


def rows_of(lines: Iterable[record.Line]) -> dict[str, Row]:
  """Groups lines by setting.

  Args:
    lines: A record; a later line of a seed replaces an earlier one.
  """
  found: dict[str, dict[int, record.Line]] = {}
  for line in lines:
    found.setdefault(str(line["setting"]), {})[int(line["seed"])] = line
  return {
    name: Row(name, dict(sorted(seeds.items())))
    for name, seeds in found.items()
  }


def tables(lines: Sequence[record.Line]) -> Iterator[str]:
  """Yields the sections of all studies in which there is a comparison.

  Args:
    lines: A record.
  """
  every = rows_of(lines)
  for study in plan.STUDIES:
    rows = [every[name] for name in study.rows if name in every]
    # Differences are those from the study's own first row.
    if len(rows) > 1 and rows[0].name == study.rows[0]:
      yield f"## {study.title}\n\n{study.question}\n\n{_table(rows)}"


def _table(rows: Sequence[Row]) -> str:
  """Returns one study; the first row is what others are compared with."""
  base = rows[0]
  keys = {t: k for t, k in MEASURES.items() if base.values(k[0])}
  ranked = any("rank" in row.first for row in rows)
  titles = ["row", "weights at the start", "training", "n"]
  titles += ["parameters", "cached", "rank"] if ranked else ["passes a chunk"]
  for title in keys:
    titles += [title, f"{title}, against the first row"]
  body = []
  for row in rows:
    cells = [row.name, row.first["start"], row.budget, str(len(row.lines))]
    cells += _sizes(row) if ranked else [str(row.first["passes"])]
    for key, digits in keys.values():
      values = row.values(key)
      cells.append(_mean(statistics.summarise([*values.values()]), digits))
      cells.append("" if row is base else _against(row, base, key, digits))
    body.append(cells)
  lines = [titles, ["---"] * len(titles), *body]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _sizes(row: Row) -> list[str]:
  """Returns parameters, cached scalars per token and layer, and ranks."""
  line = row.first
  mean = lambda key: statistics.summarise([*row.values(key).values()]).mean
  return [
    f"{line['parameters']:,}",
    str(line["cached_scalars"]),
    f"{mean('rank_at_start'):.1f} → {mean('rank'):.1f} of "
    f"{line['rank_highest']:.0f} (entropy {mean('rank_entropy_at_start'):.1f} "
    f"→ {mean('rank_entropy'):.1f})",
  ]


def _mean(x: statistics.Summary, digits: int) -> str:
  """Returns mean ± deviation and the interval of the mean."""
  if math.isnan(x.half):
    return f"{x.mean:.{digits}f}"
  low, high = x.mean - x.half, x.mean + x.half
  return (
    f"{x.mean:.{digits}f} ± {x.deviation:.{digits}f} "
    f"[{low:.{digits}f}, {high:.{digits}f}]"
  )


def _against(row: Row, base: Row, key: str, digits: int) -> str:
  """Returns the paired difference; bold if its interval excludes zero."""
  x = statistics.differences(row.values(key), base.values(key))
  if x is None:
    return "no shared seed"
  text = f"{x.mean:+.{digits}f}"
  if not math.isnan(x.half):
    low, high = x.mean - x.half, x.mean + x.half
    text += f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    text = f"**{text}**" if x.excludes_zero else text
  notes = [
    f"other {what}"
    for what, mine, other in (
      ("training", row.budget, base.budget),
      ("start", row.first["start"], base.first["start"]),
    )
    if mine != other
  ]
  return text + "".join(f", {note}" for note in notes)


def summary(lines: Sequence[record.Line]) -> str:
  """Returns a line for each row, as a command prints it.

  Args:
    lines: A record.
  """
  texts = []
  for name, row in rows_of(lines).items():
    parts = [f"{name} (n={len(row.lines)})"]
    for title, (key, digits) in MEASURES.items():
      if values := row.values(key):
        x = statistics.summarise([*values.values()])
        text = f"{title} {x.mean:.{digits}f}"
        # A single value has no deviation.
        text += f" ± {x.deviation:.{digits}f}" if x.values > 1 else ""
        parts.append(text)
    if ranks := row.values("rank"):
      mean = statistics.summarise([*ranks.values()]).mean
      parts.append(f"rank {mean:.1f} of {row.first['rank_highest']:.0f}")
    texts.append(", ".join(parts))
  return "\n".join(texts)
