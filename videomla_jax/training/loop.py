"""The loop of a stage: step after step, with everything that a long run needs.

A step is dispatched before the one before it has ended: nothing in the loop
waits for the device but what is logged, evaluated, saved or shown.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

from absl import logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jaxtyping import PyTree

from videomla_jax import sharding
from videomla_jax.runtime import metrics
from videomla_jax.storage import train_states
from videomla_jax.training import batches as batches_lib
from videomla_jax.training import evaluation
from videomla_jax.training import inputs
from videomla_jax.training import interrupts
from videomla_jax.training import optim
from videomla_jax.training import profile as profile_lib
from videomla_jax.training import programs as programs_lib
from videomla_jax.training import samples
from videomla_jax.training import settings as settings_lib
from videomla_jax.training import throughput
from videomla_jax.training.stages import stage as stage_lib


def to_host(state: PyTree) -> PyTree:
  """Returns all of a sharded tree in this process's memory."""
  if jax.process_count() == 1:
    return jax.device_get(state)
  return multihost_utils.process_allgather(state, tiled=True)


class _Due(NamedTuple):
  """What follows a step."""

  log: bool
  evaluate: bool
  save: bool
  sample: bool
  stop: bool  # somebody asked for it, and steps are left


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One run of one stage; call it with a state to train to the end.

  Attributes:
    stage: The stage.
    settings: Settings of the stage.
    record: The config as plain JSON values, saved with every state.
    root: Folder of the run.
    frozen: Networks that are only read.
    mesh: The devices.
    checkpoints: Where states are saved.
    profile: Which steps are traced.
  """

  stage: stage_lib.Stage
  settings: settings_lib.Training
  record: dict[str, Any]
  root: pathlib.Path
  frozen: stage_lib.Networks
  mesh: jax.sharding.Mesh
  checkpoints: train_states.TrainCheckpoints
  profile: profile_lib.Profile

  def __call__(
    self, state: stage_lib.State, batches: batches_lib.Batches
  ) -> stage_lib.State:
    """Steps to the end, or until SIGTERM.

    Args:
      state: Sharded training state.
      batches: Position in the data, where the state was saved.

    Returns:
      The last state.

    Raises:
      ValueError: If too many updates in a row are not finite.
      SystemExit: After SIGTERM, when the state is on disk.
    """
    start, total = int(state.step), self.settings.optim.steps
    programs = programs_lib.Programs(self.stage, self.settings)
    evaluate = evaluation.Evaluation(
      self.stage, self.settings, self.frozen, self.mesh
    )
    watch = interrupts.FiniteWatch(
      self.root / "skipped", limit=self.settings.optim.max_skipped
    )
    watch.start(state.skipped)
    stop = interrupts.StopRequest()
    key = jax.random.key(self.settings.seed)
    with (
      jax.set_mesh(self.mesh),
      stop.listening(),
      metrics.MetricWriter(self.root, resumed_step=start) as writer,
      metrics.Progress(total, self.stage.title, initial=start) as progress,
    ):
      clock = throughput.Clock(start)
      for done in range(start + 1, total + 1):
        batch = next(batches)
        placed = sharding.put_batch(batch, self.mesh)
        program = programs.get(done, state, placed, key, self.frozen)
        self.profile.before(done)
        state, scalars = program.step(state, placed, key, self.frozen)
        self.profile.after(done, scalars)
        clock.add(program.flops)
        # The state is donated to the next step; the count is a copy.
        watch.see(done, scalars["train/skipped"], batch)
        progress.update()
        due = self._due(done, asked_to_stop=stop.pending(done))
        if due.log:
          values = self._scalars(scalars, *clock.lap(done))
          writer.scalars(done, values)
          progress.update(0, loss=values["train/loss"])
        if done == total:
          watch.finish()
        if due.evaluate:
          values = evaluate(state.ema)
          if values:
            writer.scalars(done, values)
          clock.lap(done)
        if due.save:
          self._save(done, state, batches, force=due.stop or done == total)
        if due.sample:
          self._sample(done, state.ema)
          clock.lap(done)
        if due.stop:
          self._stop(done)
    self.profile.stop()
    return state

  def _due(self, done: int, *, asked_to_stop: bool) -> _Due:
    """Returns what follows a step."""
    settings, last = self.settings, done == self.settings.optim.steps
    saves = done % settings.checkpoint.every == 0 or last or asked_to_stop
    return _Due(
      log=done % settings.log.every == 0 or saves,
      evaluate=done % settings.eval.every == 0 or last,
      save=saves,
      sample=done % settings.samples.every == 0 or last,
      stop=asked_to_stop and not last,
    )

  def _scalars(
    self, scalars: optim.Metrics, seconds: float, operations: float
  ) -> dict[str, float]:
    """Fetches the scalars of a step and adds how fast it was."""
    speed = throughput.scalars(
      examples=self.stage.examples_per_step(self.settings),
      seconds=seconds,
      flops=operations,
    )
    return {name: float(x) for name, x in scalars.items()} | speed

  def _save(
    self,
    done: int,
    state: stage_lib.State,
    batches: batches_lib.Batches,
    *,
    force: bool,
  ) -> None:
    """Starts to save the state and where the data are."""
    self.checkpoints.save(
      done, state, batches.get_state(), self.record, force=force
    )

  def _sample(self, done: int, model: inputs.Network) -> None:
    """Shows videos of the averaged model."""
    if self.settings.samples.videos < 1:
      return
    model = to_host(model)
    if jax.process_index() == 0:
      with jax.set_mesh(sharding.make_mesh(devices=jax.local_devices()[:1])):
        # In the mesh of the run they would be spread over all processes.
        samples.write(
          self.root / "samples",
          jax.tree.map(jnp.asarray, model),
          done,
          self.settings,
          sampler=self.stage.sampler(self.settings),
          causal=self.stage.causal,
        )

  def _stop(self, done: int) -> None:
    """Ends the process; the same command goes on later."""
    self.profile.stop()
    self.checkpoints.wait()
    logging.warning(
      "SIGTERM: saved step %d of %d; the same command continues there",
      done, self.settings.optim.steps,
    )  # fmt: skip
    raise SystemExit(interrupts.EXIT_CODE)
