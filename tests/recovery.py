"""Kills a training run at random points until it is done anyway.

  python -m tests.recovery FOLDER --kills=20 --steps=60 --seed=0

Runs one tiny training twice, once in peace and once as processes that end
themselves by SIGKILL at random moments, and says whether everything is equal.
"""

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
from typing import Any

import jax
import numpy as np
import pytest

from tests import tiny_project
from videomla_jax import metrics
from videomla_jax import train
from videomla_jax import train_checkpoints

_ROOT = pathlib.Path(__file__).parents[1]


def config(data: str, steps: int) -> Any:
  """A run of one program that saves every third step."""
  made = tiny_project.config("teacher_forcing", "small,runlocal")
  made.data.root = data
  made.optim.steps = steps
  made.diffusion.first_frame_every = 0
  made.checkpoint.update(every=3, keep=2)
  made.eval.every = made.samples.every = 10**6
  made.samples.videos = 0
  return made


def child(data: str, workdir: str, steps: int, kill_after: float) -> None:
  """Trains; with a positive time, ends the process that long after a step."""
  patch = pytest.MonkeyPatch()
  tiny_project.shrink(patch)
  write = metrics.MetricWriter.scalars
  timers: list[threading.Timer] = []

  def scalars(self, done, values):
    write(self, done, values)
    if kill_after > 0 and not timers:
      end = lambda: os.kill(os.getpid(), signal.SIGKILL)
      timers.append(threading.Timer(kill_after, end))
      timers[0].daemon = True
      timers[0].start()

  patch.setattr(metrics.MetricWriter, "scalars", scalars)
  train.train(config(data, steps), workdir)


def _run(folder: pathlib.Path, name: str, steps: int, kill_after: float) -> int:
  command = [sys.executable, "-m", "tests.recovery", str(folder)]
  command += [f"--child={name}", f"--steps={steps}", f"--after={kill_after}"]
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
  }
  done = subprocess.run(
    command, cwd=_ROOT, env=environment, capture_output=True, text=True
  )
  if done.returncode not in (0, -signal.SIGKILL):
    raise RuntimeError(done.stderr[-3000:])
  return done.returncode


def _outcome(folder: pathlib.Path, name: str, steps: int) -> Any:
  """Losses by step, final arrays and data position."""
  root = folder / name
  losses = {
    x["step"]: x["train/loss"]
    for x in metrics.read_jsonl(root)
    if "train/loss" in x
  }
  patch = pytest.MonkeyPatch()
  tiny_project.shrink(patch)
  like, _ = train.init_state(config(str(folder / "data"), steps))
  with train_checkpoints.TrainCheckpoints(root / "checkpoints") as saved:
    restored = saved.restore_latest(like)
  patch.undo()
  arrays = [np.asarray(x) for x in jax.tree.leaves(restored.state)]
  return losses, arrays, restored.step, restored.iterator_state


def compare(folder: pathlib.Path, *, kills: int, steps: int, seed: int) -> int:
  """Runs both and asserts that they are equal, bit for bit.

  Args:
    folder: Where to work.
    kills: Processes to kill; then one may finish.
    steps: Of the run.
    seed: Of the moments.

  Returns:
    Processes that were killed.
  """
  assert _run(folder, "whole", steps, 0) == 0
  rng, killed = random.Random(seed), 0
  for _ in range(kills):
    code = _run(folder, "parts", steps, rng.uniform(0.001, 4.0))
    killed += code != 0
    if code == 0:
      break
  assert _run(folder, "parts", steps, 0) == 0
  ours, expected = (_outcome(folder, n, steps) for n in ("parts", "whole"))
  assert ours[0] == expected[0] and sorted(ours[0]) == [*range(1, steps + 1)]
  for a, b in zip(ours[1], expected[1], strict=True):
    np.testing.assert_array_equal(a, b)
  assert ours[2:] == expected[2:]
  return killed


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--child", default="")
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--steps", type=int, default=60)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--after", type=float, default=0.0)
  given = parser.parse_args()
  folder = given.folder.absolute()
  if given.child:
    child(
      str(folder / "data"),
      str(folder / given.child),
      given.steps,
      given.after,
    )
    return
  killed = compare(
    folder, kills=given.kills, steps=given.steps, seed=given.seed
  )
  print(f"{killed} processes killed; run, losses and data order are equal")


if __name__ == "__main__":
  main()
