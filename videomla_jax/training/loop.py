"""The loop of a stage: step after step, with everything that a long run needs.

The device never waits for this loop: a step is dispatched while the one before
it still runs, and only what is logged, evaluated, saved or shown is waited for.
"""

from collections.abc import Iterator
import dataclasses
import pathlib
from typing import NamedTuple

from absl import logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jaxtyping import PyTree
import numpy as np

from videomla_jax import sharding
from videomla_jax.runtime import metrics
from videomla_jax.runtime import progress_bar
from videomla_jax.storage import train_states
from videomla_jax.training import batches as batches_lib
from videomla_jax.training import evaluation
from videomla_jax.training import finite_watch
from videomla_jax.training import inputs
from videomla_jax.training import interrupts
from videomla_jax.training import optim
from videomla_jax.training import profile as profile_lib
from videomla_jax.training import programs as programs_lib
from videomla_jax.training import rank_metrics
from videomla_jax.training import samples
from videomla_jax.training import settings as settings_lib
from videomla_jax.training import throughput
from videomla_jax.training.stages import stage as stage_lib


def to_host(state: PyTree) -> PyTree:
  """Returns all of a sharded tree in this process's memory."""
  if jax.process_count() == 1:
    return jax.device_get(state)
  return multihost_utils.process_allgather(state, tiled=True)


def _take(batches: batches_lib.Batches, count: int) -> dict[str, np.ndarray]:
  """Returns the next batch, or several along a new first axis."""
  if count == 1:
    return next(batches)
  taken = [next(batches) for _ in range(count)]
  # The negative prompt is the same in all of them.
  return {
    name: x if name == "negative" else np.stack([b[name] for b in taken])
    for name, x in taken[0].items()
  }


class _Due(NamedTuple):
  """What the loop has to do after a step.

  Attributes:
    log: Whether its scalars are written.
    evaluate: Whether the average is evaluated on held-out clips.
    rank: Whether the ranks that its attention occupies are measured.
    save: Whether the state is saved.
    sample: Whether videos are made.
    stop: Whether the run ends although steps are left.
  """

  log: bool
  evaluate: bool
  rank: bool
  save: bool
  sample: bool
  stop: bool


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
    checkpoints: Saved states of the run.
    profile: The steps that are traced.
  """

  stage: stage_lib.Stage
  settings: settings_lib.Training
  record: dict[str, object]
  root: pathlib.Path
  frozen: stage_lib.Networks
  mesh: jax.sharding.Mesh
  checkpoints: train_states.TrainCheckpoints
  profile: profile_lib.Profile

  def __call__(
    self, state: stage_lib.State, batches: batches_lib.Batches
  ) -> stage_lib.State:
    """Trains to the last step, or until SIGTERM or SIGINT.

    Args:
      state: Sharded training state.
      batches: Batches from the one after the state's on.

    Returns:
      The last state.

    Raises:
      ValueError: If too many updates in a row are not finite.
      SystemExit: After a signal, when the state is on disk.
    """
    start, total = int(state.step), self.settings.optim.steps
    programs = programs_lib.Programs(self.stage, self.settings)
    evaluate = evaluation.Evaluation(
      self.stage, self.settings, self.frozen, self.mesh
    )
    watch = finite_watch.FiniteWatch(
      self.root / "skipped", limit=self.settings.optim.max_skipped
    )
    watch.start(state.skipped)
    with (
      jax.set_mesh(self.mesh),
      interrupts.StopRequest().listening() as stop,
      metrics.MetricWriter(self.root, resumed_step=start) as writer,
      progress_bar.Progress(total, self.stage.title, initial=start) as progress,
    ):
      clock = throughput.Clock(start)
      owed = False  # whether a state was due while updates were skipped
      for done, count in self._calls(start):
        batch = _take(batches, count)
        state, scalars = self._dispatch(
          programs, done, count, state, batch, clock
        )
        # The state is donated to the next step; the count is a copy.
        watch.see(done, scalars["train/skipped"], batch)
        progress.update(count)
        due = self._due(done, asked_to_stop=stop.pending(done))
        if due.log:
          # Fetching these waits for the step.
          values = self._scalars(scalars, *clock.lap(done))
          writer.scalars(done, values)
          progress.update(0, loss=values["train/loss"])
        updated = watch.finish() if done == total or due.save or owed else True
        if due.evaluate:
          values = evaluate(state.ema)
          if values:
            writer.scalars(done, values)
          clock.lap(done)  # This time belongs to no step.
        if due.rank:
          taken = to_host(rank_metrics.weights(state.ema))
          if ranks := rank_metrics.scalars(taken):
            writer.scalars(done, ranks)
          clock.lap(done)
        if updated and (due.save or owed):
          self._save(done, state, batches)
        # States of skipped steps would push out those before them.
        owed = not updated
        if due.sample:
          self._sample(done, state.ema)
          clock.lap(done)
        if due.stop:
          self._stop(done, stop, saved=updated)
    self.profile.stop()
    return state

  def _dispatch(
    self,
    programs: programs_lib.Programs,
    done: int,
    count: int,
    state: stage_lib.State,
    batch: dict[str, np.ndarray],
    clock: throughput.Clock,
  ) -> tuple[stage_lib.State, optim.Metrics]:
    """Starts steps and returns their results, which need not be there yet.

    Args:
      programs: The compiled steps of the stage.
      done: The last step, counted from 1.
      count: Steps of the call.
      state: The state before it, which is used up.
      batch: This process's part of the batch, or of that of each step.
      clock: Clock that counts the operations.
    """
    # This is the key of the run; the program itself folds the step into it.
    key = jax.random.key(self.settings.seed)
    batch = sharding.put_batch(batch, self.mesh, stacked=count > 1)
    arguments = state, batch, key, self.frozen
    # Programs are compiled before a trace begins, which is to show steps only.
    program = programs.get(done, *arguments, count=count)
    self.profile.before(done - count + 1, count)
    state, scalars = program.step(*arguments)
    self.profile.after(done, scalars)
    clock.add(program.flops)
    return state, scalars

  def _calls(self, start: int) -> Iterator[tuple[int, int]]:
    """Yields the last step and the number of steps of each call that is left.

    Args:
      start: Number of finished steps.
    """
    dispatch, total = self.settings.dispatch, self.settings.optim.steps
    while start < total:
      # A run that was stopped between two intervals comes back into step.
      done = min(start - start % dispatch + dispatch, total)
      yield done, done - start
      start = done

  def _due(self, done: int, *, asked_to_stop: bool) -> _Due:
    """Returns what follows a step.

    Args:
      done: The step, counted from 1.
      asked_to_stop: Whether somebody asked the run to stop.
    """
    settings, last = self.settings, done == self.settings.optim.steps
    # The last state is saved as well, so that a longer run can go on from it.
    saves = done % settings.checkpoint.every == 0 or last or asked_to_stop

    def at(every: int | None) -> bool:
      # None is said where there is nothing to do.
      return every is not None and (done % every == 0 or last)

    return _Due(
      # A run that stops between two lines reports the steps since the last.
      log=done % settings.log.every == 0 or saves,
      evaluate=at(settings.eval.every),
      rank=at(settings.log.ranks_every),
      save=saves,
      sample=at(settings.samples.every),
      stop=asked_to_stop and not last,
    )

  def _scalars(
    self, scalars: optim.Metrics, seconds: float, operations: float
  ) -> dict[str, float]:
    """Fetches the scalars of a step and adds how fast it was.

    Args:
      scalars: What the step returned.
      seconds: Mean time of a step.
      operations: Mean operations of a step, over all devices.
    """
    speed = throughput.scalars(
      examples=self.stage.examples_per_step(self.settings),
      seconds=seconds,
      flops=operations,
    )
    # Of several steps, only the counts of skipped updates are not one number.
    last = {name: np.asarray(x).flat[-1] for name, x in scalars.items()}
    return {name: float(x) for name, x in last.items()} | speed

  def _save(
    self,
    done: int,
    state: stage_lib.State,
    batches: batches_lib.Batches,
  ) -> None:
    """Starts to save the state and the position in the data.

    Args:
      done: Number of finished steps.
      state: The state.
      batches: The data.
    """
    # Steps that are no multiple of `every` are saved, too, if they are due.
    self.checkpoints.save(
      done, state, batches.get_state(), self.record, force=True
    )

  def _sample(self, done: int, model: inputs.Network) -> None:
    """Makes videos with the averaged model, in the first process.

    Args:
      done: Number of finished steps.
      model: The averaged model, over all devices.
    """
    model = to_host(model)  # All processes have to take part in this.
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

  def _stop(
    self, done: int, stop: interrupts.StopRequest, *, saved: bool
  ) -> None:
    """Ends the process; the same command goes on later.

    Args:
      done: Number of finished steps.
      stop: Who asked to stop.
      saved: Whether the last step is being saved; a skipped one is not.
    """
    self.profile.stop()
    self.checkpoints.wait()
    newest = done if saved else max(self.checkpoints.steps(), default=0)
    logging.warning(
      "%s: saved step %d of %d; the same command continues there",
      stop.reason, newest, self.settings.optim.steps,
    )  # fmt: skip
    raise stop.obey()
