"""Writes tables of the small world's quality, from the report of `evaluate`."""

from collections.abc import Mapping
from typing import Any

from videomla_jax.small_world import measures

START = "<!-- small world: start -->"
END = "<!-- small world: end -->"

_COLUMNS = {
  "real": "real clips",
  "latent": "many steps, stage 1",
  "student": "four-step student, stage 3",
}
_ROWS = {
  "identity": "frames that show the digit of the prompt",
  "count": "frames with exactly one whole digit",
  "direction": "videos that move along the axes of the prompt",
  "speed": "videos at the speed of the prompt",
  "steps": "steps that move as the prompt says",
}


def whole(report: Mapping[str, Any]) -> str:
  """Returns the table of all measures.

  Args:
    report: What `evaluate` wrote.
  """
  return measures.table(report["summary"]) + "\n"


def quality(report: Mapping[str, Any]) -> str:
  """Returns the README's table: first and last ten seconds of a minute.

  Args:
    report: What `evaluate` wrote.
  """
  lines = [
    f"| | {' | '.join(_COLUMNS.values())} |",
    "|---" * (1 + len(_COLUMNS)) + "|",
  ]
  for name, meaning in _ROWS.items():
    cells = [_pair(report["summary"][row], name) for row in _COLUMNS]
    lines.append(f"| {meaning} | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def _pair(summary: Mapping[str, Mapping[str, float]], name: str) -> str:
  """Returns the means of both windows, without the zero in front."""
  parts = [f"{summary[f'{name}/{w}']['mean']:.2f}" for w in ("first", "last")]
  return " / ".join(part.removeprefix("0") for part in parts)
