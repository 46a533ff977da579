"""Writes the table of what training in the colour world needs on a GPU."""

from collections.abc import Sequence
import pathlib
from typing import Any

from videomla_jax.chain import settings
from videomla_jax.measuring import record

START = "<!-- costs: start -->"
END = "<!-- costs: end -->"

_IMAGES = "vae, single frames"


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
