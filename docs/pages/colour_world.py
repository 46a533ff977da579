"""Writes tables of the colour world: what training needs, and what it made.

They follow from the record of `benchmark.py:suite=world`, from that of
`record_training.py`, and from the report of `evaluate.py:colour`.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
import pathlib
from typing import Any

import numpy as np

from videomla_jax.chain import costs
from videomla_jax.chain import settings
from videomla_jax.measuring import record
from videomla_jax.small_world.colour import measures
from videomla_jax.small_world.colour import summaries

START = "<!-- costs: start -->"
END = "<!-- costs: end -->"
JUDGED_START = "<!-- judged: start -->"
JUDGED_END = "<!-- judged: end -->"
RATES_START = "<!-- rates: start -->"
RATES_END = "<!-- rates: end -->"

RUNS = ("20 minutes", "95 minutes")
_QUALITY = {"real": "real clips", "model": "student"}
_WINDOWS = {
  "model": "sink 1",
  "sink0": "sink 0",
  "average": "averaging sink",
  "full": "full history",
  "real": "real clips",
}


def read(root: pathlib.Path) -> list[record.Line]:
  """Returns the newest line of each part, in the order of training.

  Args:
    root: Root of the project.
  """
  lines = record.read(root / "docs" / "benchmark_world.jsonl")
  newest = {line["name"]: line for line in lines}
  return [newest[name] for name in (costs.VAE_IMAGES, *settings.PARTS)]


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
  return _written(rows)


def _milliseconds(line: record.Line) -> float:
  """Returns the computed time of a step."""
  return sum(line[f"{x}_ms"] for x in ("launches", "memory", "products"))


def runs(root: pathlib.Path) -> list[record.Line]:
  """Returns what `record_training.py` wrote of runs on a CPU.

  Args:
    root: Root of the project.
  """
  return record.read(root / "docs" / "colour_world_runs.jsonl")


def rates(lines: Sequence[record.Line]) -> str:
  """Returns the table of learning rates that were compared.

  Args:
    lines: What `runs` returned.
  """
  found = [x for x in lines if x["name"] == "rates of single frames"]
  steps = [str(step) for step, _ in found[0]["eval/loss"]]
  rows = [("learning rate of AdamW", *(f"held out after {x}" for x in steps))]
  rows.append(("---",) * len(rows[0]))
  rows += [
    (x["part"], *(f"{loss:.3f}" for _, loss in x["eval/loss"])) for x in found
  ]
  return _written(rows)


def run(lines: Sequence[record.Line], name: str) -> str:
  """Returns the table of a run of the whole way, a row for each part.

  Args:
    lines: What `runs` returned.
    name: One of `RUNS`.
  """
  rows = [("part", "steps", "loss, first to last fifth", "held out")]
  rows.append(("---",) * len(rows[0]))
  for line in (x for x in lines if x["name"] == name):
    first, last = line.get("train/loss") or line["vae/loss"]
    held_out = [f"{x:.3g}" for _, x in line.get("eval/loss", ())]
    held_out += [f"{x:.1f} dB" for _, x in line.get("eval/psnr", ())]
    rows.append(
      (
        line["part"].replace("_", " "),
        f"{line['steps']:,}",
        f"{first:.3g} to {last:.3g}",
        ", ".join(held_out) or "-",
      )
    )
  return _written(rows)


def _written(rows: Sequence[Sequence[str]]) -> str:
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def judged(report: Mapping[str, Any]) -> str:
  """Returns the tables of quality, of memory by window, and of differences.

  Args:
    report: What `evaluate` wrote.
  """
  quality = {
    title: {
      key: summaries.Summary(
        **{k: math.nan if v is None else v for k, v in x.items()}
      )
      for key, x in report["summary"][name].items()
    }
    for name, title in _QUALITY.items()
  }
  made = {
    title: {
      key: np.array(x, np.float64)
      for key, x in report["per_video"][name].items()
    }
    for name, title in _WINDOWS.items()
  }
  # Values of a window, then its differences from the first one.
  memory = summaries.memory_table(made).splitlines()
  return "\n".join(
    [
      *_without(summaries.table(quality).splitlines(), ("memory",)),
      "",
      *_without(memory, tuple(measures.HIDDEN)),
      "",
    ]
  )


def _without(lines: Sequence[str], words: tuple[str, ...]) -> list[str]:
  """Returns the lines of a table whose first cell has none of the words."""
  first = lambda line: line.split("|")[1]
  return [x for x in lines if not any(word in first(x) for word in words)]
