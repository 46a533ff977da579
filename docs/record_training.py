"""Adds what a run's scalars say to docs/colour_world_runs.jsonl.

  python docs/record_training.py NAME COMMIT RUN...

COMMIT is that of the code that ran on this machine, and RUN the folder of a
stage, or of the whole way with its parts. A line has the
number of steps, the mean loss of the first and of the last fifth of what was
logged, and what was measured on held-out clips: the loss, or decibels of a VAE.
`make_benchmarks.py` writes tables of docs/colour_world.md from it.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import sys
from typing import Any

from videomla_jax.chain import settings
from videomla_jax.measuring import record
from videomla_jax.runtime import metrics

RECORD = pathlib.Path(__file__).parent / "colour_world_runs.jsonl"
_LOSSES = ("train/loss", "vae/loss", "train/loss_critic")
_HELD_OUT = ("eval/loss", "eval/psnr")


def line_of(name: str, folder: pathlib.Path) -> record.Line:
  """Returns the line of a stage.

  Args:
    name: What the run is called.
    folder: Folder of a stage, with its scalars.

  Raises:
    ValueError: If the folder has no scalars of training.
  """
  lines = metrics.read_jsonl(folder)
  if not any(loss in x for x in lines for loss in _LOSSES):
    raise ValueError(f"{folder} has no metrics.jsonl of training.")
  made: dict[str, Any] = dict(name=name, part=folder.name)
  made["steps"] = max(x["step"] for x in lines)
  for loss in _LOSSES:
    found = [x[loss] for x in lines if loss in x]
    if found:
      fifth = max(1, len(found) // 5)
      mean = lambda values: float(f"{sum(values) / len(values):.4g}")
      made[loss] = [mean(found[:fifth]), mean(found[-fifth:])]
  for name in _HELD_OUT:
    found = [[x["step"], float(f"{x[name]:.4g}")] for x in lines if name in x]
    if found:
      made[name] = found
  return made


def main(name: str, commit: str, runs: Sequence[str]) -> None:
  """Adds the lines of runs.

  Args:
    name: What they are called.
    commit: Short hash of the code that ran.
    runs: Their folders.

  Raises:
    ValueError: If one of them is no run.
  """
  made = []
  for run in map(pathlib.Path, runs):
    parts = [run / part for part in settings.PARTS if (run / part).is_dir()]
    about = {}
    if parts:
      chain = json.loads((run / "chain.json").read_text("utf-8"))
      about = dict(minutes=round(chain["seconds"] / 60, 1))
    made += [line_of(name, part) | about for part in parts or [run]]
  session = dataclasses.replace(record.Session.here(), commit=commit)
  record.add(RECORD, session, made)


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2], sys.argv[3:])
