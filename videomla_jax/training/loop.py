"""Runs a stage: step after step, with everything that a long run needs."""

import functools
import json
import pathlib
import time
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp

from videomla_jax import sharding
from videomla_jax.costs import flops
from videomla_jax.ops import device
from videomla_jax.runtime import metrics
from videomla_jax.storage import train_states
from videomla_jax.training import batches as batches_lib
from videomla_jax.training import interrupts
from videomla_jax.training import samples
from videomla_jax.training.stages import table


def to_host(state: Any) -> Any:
  """All of a sharded tree, in this process's memory."""
  if jax.process_count() == 1:
    return jax.device_get(state)
  return multihost_utils.process_allgather(state, tiled=True)


class Clock:
  """Mean time and operations of a step since the last look."""

  def __init__(self, step: int) -> None:
    """Starts at a finished step."""
    self._time, self._step, self._flops = time.monotonic(), step, 0.0

  def add(self, flops: float | int) -> None:
    """Counts the operations of a step."""
    self._flops += flops

  def lap(self, step: int) -> tuple[float, float]:
    """Seconds and operations of a step since the last call."""
    now, steps = time.monotonic(), max(step - self._step, 1)
    seconds, done = (now - self._time) / steps, self._flops / steps
    self._time, self._step, self._flops = now, step, 0.0
    return seconds, done


class Profile:
  """Traces a range of steps into WORKDIR/profile for TensorBoard."""

  def __init__(self, root: pathlib.Path, window: str) -> None:
    """Reads the window.

    Args:
      root: Folder of the run.
      window: `FIRST:LAST` step, or nothing.

    Raises:
      ValueError: If it is not such a pair.
    """
    self._folder, self._on = root / "profile", False
    self._first = self._last = -1
    if window:
      first, separator, last = window.partition(":")
      if not (separator and first.isdigit() and last.isdigit()):
        raise ValueError(
          f"--profile={window!r} must name the first and the last step; use "
          "--profile=10:15."
        )
      self._first, self._last = int(first), int(last)

  def before(self, step: int) -> None:
    """Starts the trace in front of its first step."""
    if step == self._first:
      jax.profiler.start_trace(str(self._folder))
      self._on = True

  def after(self, step: int, scalars: Any) -> None:
    """Ends it after its last step."""
    if self._on and step >= self._last:
      jax.block_until_ready(scalars)
      self.stop()
      logging.info("trace of steps up to %d is in %s", step, self._folder)

  def stop(self) -> None:
    """Ends a trace that is running."""
    if self._on:
      jax.profiler.stop_trace()
      self._on = False


class Evaluation:
  """Loss of the average on fixed held-out batches and noise."""

  def __init__(self, config: Any, frozen: Any, mesh: Any) -> None:
    """Reads the batches; compiles at first use."""
    self._batches: list[Any] = []
    self._frozen, self._mesh = frozen, mesh
    loss = table.held_out_loss(config)
    if loss is None or not config.eval.batches:
      return
    self._loss = jax.jit(loss)
    held_out = iter(batches_lib.loader(config, "test"))
    self._batches = [next(held_out) for _ in range(config.eval.batches)]

  def __call__(self, model: Any) -> dict[str, float]:
    """Scalars of a model; none where a stage has no such loss."""
    if not self._batches:
      return {}
    start = time.monotonic()
    losses = [
      float(
        self._loss(
          model,
          sharding.put_batch(batch, self._mesh),
          jax.random.key(i),
          frozen=self._frozen,
        )
      )
      for i, batch in enumerate(self._batches)
    ]
    return {
      "eval/loss": sum(losses) / len(losses),
      "perf/eval_seconds": time.monotonic() - start,
    }


def _performance(config: Any, seconds: float, done: float) -> dict[str, float]:
  """Throughput, utilisation and memory of a step of `done` operations."""
  examples = batches_lib.examples_per_step(config)
  values = {
    "perf/step_seconds": seconds,
    "perf/clips_per_second": examples / seconds,
  }
  if done:
    rate = done / seconds / jax.device_count()
    values["perf/teraflops"] = rate / 1e12
    peak = device.current().peak
    if peak is not None:
      values["perf/flop_utilisation"] = rate / peak.bf16_flops
  memory = device.peak_memory_bytes()
  if memory is not None:
    values["perf/peak_memory_gib"] = memory / 2**30
  return values


class Run:
  """One run of one stage, from its state to the last step."""

  def __init__(
    self,
    config: Any,
    root: pathlib.Path,
    frozen: Any,
    mesh: jax.sharding.Mesh,
    checkpoints: train_states.TrainCheckpoints,
    profile: Profile,
  ) -> None:
    """Prepares what does not depend on the state."""
    self._config, self._root, self._frozen = config, root, frozen
    self._mesh, self._checkpoints, self._profile = mesh, checkpoints, profile
    self._title = table.get(config).TITLE
    self._evaluate = Evaluation(config, frozen, mesh)
    self._key = jax.random.key(config.seed)
    self._programs: dict[Any, Any] = {}
    self._flops: dict[Any, float] = {}  # of each program

  def _program(self, variant: Any, *args: Any) -> Any:
    """The compiled step of one variant; compile time is not step time."""
    if variant not in self._programs:
      step = functools.partial(table.step(self._config), variant=variant)

      def seeded(state, batch, key, frozen):
        key = jax.random.fold_in(key, state.step)
        return step(state, batch, key, frozen=frozen)

      start = time.monotonic()
      jitted = jax.jit(seeded, donate_argnums=0)
      self._programs[variant] = jitted.lower(*args).compile()
      self._flops[variant] = 0.0
      if self._config.log.flops:
        trips = table.mean_trips(self._config)
        self._flops[variant] = flops.of(seeded, *args, trips=trips)
      logging.info(
        "compiled %s in %.1f s", self._title, time.monotonic() - start
      )
    return self._programs[variant]

  def _one_step(
    self, state: Any, batch: Any, done: int, clock: Clock
  ) -> tuple[Any, Any]:
    args = (
      state,
      sharding.put_batch(batch, self._mesh),
      self._key,
      self._frozen,
    )
    variant = table.variant(self._config, done)
    self._profile.before(done)
    state, scalars = self._program(variant, *args)(*args)
    self._profile.after(done, scalars)
    clock.add(self._flops[variant])
    return state, scalars

  def __call__(self, state: Any, batches: Any) -> Any:
    """Steps to the end, or until SIGTERM.

    Args:
      state: Sharded training state.
      batches: Iterator with `get_state`.

    Returns:
      The last state.

    Raises:
      ValueError: If too many updates in a row are not finite.
      SystemExit: After SIGTERM, when the state is on disk.
    """
    config = self._config
    start, total = int(state.step), config.optim.steps
    watch = interrupts.FiniteWatch(
      self._root / "skipped", limit=config.optim.max_skipped
    )
    watch.start(table.skipped(state))
    stop = interrupts.StopRequest()
    with (
      jax.set_mesh(self._mesh),
      stop.listening(),
      metrics.MetricWriter(self._root, resumed_step=start) as writer,
      metrics.Progress(total, self._title, initial=start) as progress,
    ):
      clock = Clock(start)
      for done in range(start + 1, total + 1):
        batch = next(batches)
        state, scalars = self._one_step(state, batch, done, clock)
        # The state is donated to the next step; the count is a copy.
        watch.see(done, scalars["train/skipped"], batch)
        progress.update()
        last = done == total
        stopping = stop.pending(done)
        saves = done % config.checkpoint.every == 0 or last or stopping
        if done % config.log.every == 0 or saves:
          values = {name: float(x) for name, x in scalars.items()}
          values |= _performance(config, *clock.lap(done))
          writer.scalars(done, values)
          progress.update(0, loss=values["train/loss"])
        if last:
          watch.finish()
        if done % config.eval.every == 0 or last:
          values = self._evaluate(state.ema)
          if values:
            writer.scalars(done, values)
          clock.lap(done)
        if saves:
          self._save(done, state, batches, force=last or stopping)
        if done % config.samples.every == 0 or last:
          self._sample(done, state.ema)
          clock.lap(done)
        if stopping and not last:
          self._stop(done)
    self._profile.stop()
    return state

  def _save(self, done: int, state: Any, batches: Any, *, force: bool) -> None:
    self._checkpoints.save(
      done,
      state,
      batches.get_state(),
      json.loads(self._config.to_json()),
      force=force,
    )

  def _sample(self, done: int, model: Any) -> None:
    if self._config.samples.videos < 1:
      return
    model = to_host(model)
    if jax.process_index() == 0:
      with jax.set_mesh(sharding.make_mesh(devices=jax.local_devices()[:1])):
        # In the mesh of the run they would be spread over all processes.
        model = jax.tree.map(jnp.asarray, model)
        samples.write(self._root / "samples", model, done, self._config)

  def _stop(self, done: int) -> None:
    self._profile.stop()
    self._checkpoints.wait()
    logging.warning(
      "SIGTERM: saved step %d of %d; the same command continues there",
      done, self._config.optim.steps,
    )  # fmt: skip
    raise SystemExit(interrupts.EXIT_CODE)
