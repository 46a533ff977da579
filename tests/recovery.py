"""Kills a training run at random moments until it is done anyway.

  python -m tests.recovery FOLDER --kills=60 --steps=3000 --seed=0

Runs one tiny training twice, once in peace and once as processes that end
themselves by SIGKILL at random moments, and says whether everything is equal.
Half of the moments lie in the short time in which a state gets its digests and
its name.
"""

import argparse
import atexit
import collections
import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from tests import tiny_project
from videomla_jax import train
from videomla_jax.runtime import metrics
from videomla_jax.storage import atomic
from videomla_jax.storage import state_commit
from videomla_jax.storage import state_digests
from videomla_jax.storage import train_states
from videomla_jax.training.stages import table

ROOT = pathlib.Path(__file__).parents[1]

# Calls while a state is completed, before or after which a process may end.
MOMENTS: dict[str, tuple[Any, str]] = {
  "digest": (state_digests, "sha256"),
  "list": (state_digests, "write"),
  "sync": (atomic, "sync_all"),
  "name": (state_commit.os, "rename"),
}


class Outcome(NamedTuple):
  """What a run leaves: losses by step, last arrays, step, data position."""

  losses: dict[int, float]
  arrays: list[np.ndarray]
  step: int
  iterator_state: Any


@dataclasses.dataclass(frozen=True)
class Child:
  """A tiny run in processes of its own, which may be ended and go on.

  Attributes:
    folder: Data and compiled programs, shared by runs.
    name: Folder of this run in it.
    steps: Of the run.
    batch: Examples per step.
  """

  folder: pathlib.Path
  name: str
  steps: int
  batch: int = 2

  def config(self) -> Any:
    """One program, and a state every third step."""
    made = tiny_project.config("teacher_forcing", "small,runlocal")
    made.data.update(root=str(self.folder / "data"), batch_size=self.batch)
    made.optim.steps = self.steps
    made.diffusion.first_frame_every = 0
    made.checkpoint.update(every=3, keep=2)
    made.eval.every = 10**6
    tiny_project.without_samples(made)
    return made

  def run(
    self,
    *,
    devices: int = 1,
    kill_after: float = 0.0,
    kill_at: str = "",
    stop_at: int = 0,
    stop_by: signal.Signals = signal.SIGTERM,
  ) -> int:
    """Starts or continues the run; returns the exit code.

    Args:
      devices: Virtual ones; the batch is split over them.
      kill_after: Seconds from the first step to SIGKILL; 0 is never.
      kill_at: Row of `MOMENTS`, a call of it, and whether before or after it,
        such as "name:3:before"; empty is never.
      stop_at: Step at which it sends itself a signal; 0 is never.
      stop_by: The signal. While the state is saved, others follow.
    """
    command = [sys.executable, "-m", "tests.recovery", str(self.folder)]
    command += [f"--child={self.name}", f"--steps={self.steps}"]
    command += [f"--batch={self.batch}", f"--stop_at={stop_at}"]
    command += [f"--stop_by={int(stop_by)}"]
    command += [f"--kill_after={kill_after}", f"--kill_at={kill_at}"]
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")
      + f" --xla_force_host_platform_device_count={devices}",
      "JAX_COMPILATION_CACHE_DIR": str(self.folder / "programs"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
      command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode not in (0, 128 + stop_by, -signal.SIGKILL):
      raise RuntimeError(f"{done.returncode}: {done.stderr[-3000:]}")
    return done.returncode

  def train(
    self, *, kill_after: float, kill_at: str, stop_at: int, stop_by: int
  ) -> None:
    """Trains in this process."""
    patch = pytest.MonkeyPatch()
    tiny_project.shrink(patch)
    if kill_at:
      _kill_at(patch, kill_at)
    write = metrics.MetricWriter.scalars
    timers: list[threading.Timer] = []

    def scalars(writer, done, values):
      write(writer, done, values)
      if kill_after > 0 and not timers:
        end = lambda: os.kill(os.getpid(), signal.SIGKILL)
        timers.append(threading.Timer(kill_after, end))
        timers[0].daemon = True
        timers[0].start()
      if done == stop_at - 1:  # seen after the next step
        _signal_again(patch)
        os.kill(os.getpid(), stop_by)

    patch.setattr(metrics.MetricWriter, "scalars", scalars)
    train.train(self.config(), str(self.folder / self.name))

  def outcome(self) -> Outcome:
    """What the run has left."""
    root = self.folder / self.name
    losses = {
      x["step"]: x["train/loss"]
      for x in metrics.read_jsonl(root)
      if "train/loss" in x
    }
    with pytest.MonkeyPatch.context() as patch:
      tiny_project.shrink(patch)
      like, _ = train.init_state(*table.read(self.config()))
    with train_states.TrainCheckpoints(root / "checkpoints") as saved:
      restored = saved.restore_latest(like)
    arrays = [np.asarray(x) for x in jax.tree.leaves(restored.state)]
    return Outcome(losses, arrays, restored.step, restored.iterator_state)


def _kill_at(patch: pytest.MonkeyPatch, moment: str) -> None:
  """Lets this process end itself at a call, see `Child.run`."""
  name, count, side = moment.split(":")
  module, function = MOMENTS[name]
  call, left = getattr(module, function), int(count)

  def dying(*given, **named):
    nonlocal left
    left -= 1
    if left == 0 and side == "before":
      os.kill(os.getpid(), signal.SIGKILL)
    result = call(*given, **named)
    if left == 0:
      os.kill(os.getpid(), signal.SIGKILL)
    return result

  patch.setattr(module, function, dying)


def _signal_again(patch: pytest.MonkeyPatch) -> None:
  """Sends more signals while the last state is saved and at the very end."""
  wait = train_states.TrainCheckpoints.wait

  def impatient(checkpoints):
    for number in (signal.SIGINT, signal.SIGTERM) * 2:
      os.kill(os.getpid(), number)
    wait(checkpoints)

  patch.setattr(train_states.TrainCheckpoints, "wait", impatient)
  for number in (signal.SIGTERM, signal.SIGINT):
    atexit.register(os.kill, os.getpid(), number)


def compare(
  folder: pathlib.Path, *, kills: int, steps: int, seed: int
) -> dict[str, int]:
  """Runs both and asserts that they are equal, bit for bit.

  Args:
    folder: Where to work.
    kills: Processes to kill; then one may finish.
    steps: Of the run.
    seed: Of the moments.

  Returns:
    Processes that were killed, by what they did.
  """
  whole, parts = (Child(folder, name, steps) for name in ("whole", "parts"))
  assert whole.run() == 0
  rng, killed = random.Random(seed), collections.Counter[str]()
  for i in range(kills):
    name = rng.choice([*MOMENTS]) if i % 2 else "step"
    side = rng.choice(["before", "after"])
    # A state has a dozen files, each of which has a digest.
    calls = rng.randint(1, 60 if name == "digest" else 6)
    moment = (
      dict(kill_at=f"{name}:{calls}:{side}")
      if i % 2
      else dict(kill_after=rng.uniform(0.001, 1.5))
    )
    if parts.run(**moment) == 0:
      break
    killed[name] += 1
    print(f"{sum(killed.values())}: {name} {moment}", flush=True)
  assert parts.run() == 0
  ours, expected = parts.outcome(), whole.outcome()
  assert ours.losses == expected.losses
  assert sorted(ours.losses) == [*range(1, steps + 1)]
  for a, b in zip(ours.arrays, expected.arrays, strict=True):
    np.testing.assert_array_equal(a, b)
  assert (ours.step, ours.iterator_state) == (steps, expected.iterator_state)
  return dict(killed)


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--kills", type=int, default=60)
  parser.add_argument("--steps", type=int, default=3000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--child", default="", help="run this one, not all")
  parser.add_argument("--batch", type=int, default=2)
  parser.add_argument("--kill_after", type=float, default=0.0)
  parser.add_argument("--kill_at", default="")
  parser.add_argument("--stop_at", type=int, default=0)
  parser.add_argument("--stop_by", type=int, default=signal.SIGTERM)
  given = parser.parse_args()
  folder = given.folder.absolute()
  if given.child:
    child = Child(folder, given.child, given.steps, given.batch)
    child.train(
      kill_after=given.kill_after,
      kill_at=given.kill_at,
      stop_at=given.stop_at,
      stop_by=given.stop_by,
    )
    return
  killed = compare(
    folder, kills=given.kills, steps=given.steps, seed=given.seed
  )
  print(
    f"{sum(killed.values())} processes killed ({killed}); run, losses and data"
    " order are equal"
  )


if __name__ == "__main__":
  main()
