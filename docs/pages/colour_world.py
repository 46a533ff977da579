"""Writes tables of the colour world: what training needs, and what was judged.

The first follows from the record of `benchmark.py:suite=world`, the others from
the report of `evaluate.py:colour`.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
from typing import Any

import numpy as np

from videomla_jax.chain import settings
from videomla_jax.measuring import record
from videomla_jax.small_world.colour import measures
from videomla_jax.small_world.colour import summaries

START = "<!-- costs: start -->"
END = "<!-- costs: end -->"
JUDGED_START = "<!-- judged: start -->"
JUDGED_END = "<!-- judged: end -->"

_IMAGES = "vae, single frames"
_QUALITY = {"real": "real clips", "model": "student"}
_WINDOWS = {
  "real": "real clips",
  "model": "sink 1, the student's own",
  "sink0": "sink 0",
  "average": "averaging sink",
  "full": "full history",
}
_MEMORY = [name for name in measures.MEASURES if name.startswith("memory")]


def read(root: pathlib.Path) -> list[record.Line]:
  """Returns the newest line of each part, in the order of training.

  Args:
    root: Root of the project.
  """
  lines = record.read(root / "docs" / "benchmark_world.jsonl")
  newest = {line["name"]: line for line in lines}
  return [newest[name] for name in (_IMAGES, *settings.PARTS)]


def table(lines: Sequence[record.Line], whole: Any) -> str:
  """Returns a row for each part, and how many steps its time has room for.

  Args:
    lines: What `read` returned.
    whole: Config of the whole way, of which `minutes` and `shares` are read.
  """
  titles = ("part", "examples a step", "kernels", "GB moved", "TFLOP", "ms")
  rows = [(*titles, f"steps in its share of {whole.minutes:g} minutes")]
  rows.append(("---",) * len(rows[0]))
  # The VAE makes as many steps of one kind as of the other.
  both = sum(map(_milliseconds, lines[:2]))
  for line in lines:
    of_vae = line["name"] not in settings.PARTS[1:]
    step = both / 2 if of_vae else _milliseconds(line)
    share = whole.shares["vae" if of_vae else line["name"]]
    share /= sum(whole.shares.values()) * (2 if of_vae else 1)
    steps = share * 60_000 * whole.minutes / step
    rows.append(
      (
        line["name"].replace("_", " "),
        f"{line['examples']}",
        f"{line['kernels']:,}",
        f"{line['gigabytes']:.1f}",
        f"{line['gigaflops'] / 1e3:.2f}",
        f"{_milliseconds(line):.1f}",
        f"{steps:,.0f}",
      )
    )
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _milliseconds(line: record.Line) -> float:
  """Returns the computed time of a step."""
  return sum(line[f"{x}_ms"] for x in ("launches", "memory", "products"))


def report(root: pathlib.Path) -> dict[str, Any]:
  """Returns the report of `evaluate` that the page quotes.

  Args:
    root: Root of the project.
  """
  return json.loads((root / "docs" / "colour_world.json").read_text("utf-8"))


def judged(report: Mapping[str, Any]) -> str:
  """Returns the tables of quality, and of memory by window.

  Args:
    report: What `evaluate` wrote.
  """
  rows = {
    name: summaries.summarise(
      {key: np.array(x, np.float64) for key, x in values.items()}
    )
    for name, values in report["per_video"].items()
  }
  quality = {title: rows[name] for name, title in _QUALITY.items()}
  lines = [
    " | ".join(["| measure of the whole video", *_WINDOWS.values()]) + " |",
    "|---" * (len(_WINDOWS) + 1) + "|",
  ]
  for key in _MEMORY:
    found = [rows[name][f"{key}/all"] for name in _WINDOWS]
    cells = [
      f"{x.total:.0f}" if key == "memory_events" else x.text() for x in found
    ]
    lines.append(" | ".join([f"| {key}", *cells]) + " |")
  whole = summaries.table(quality).splitlines()
  plain = [x for x in whole if not x.startswith("| memory")]
  return "\n".join([*plain, "", *lines]) + "\n"
