"""The compiled programs of a stage's step."""

import functools
import time
from typing import NamedTuple

from absl import logging
import jax
from jaxtyping import Array, PyTree

from videomla_jax.costs import flops
from videomla_jax.training import inputs
from videomla_jax.training import optim
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage as stage_lib


class Program(NamedTuple):
  """A compiled step and what it costs.

  Attributes:
    step: Takes state, batch, key of the run and frozen networks; returns the
      next state and scalars. The state is donated.
    flops: Operations of a step, over all devices; 0 if they are not counted.
  """

  step: jax.stages.Compiled
  flops: float


class Programs:
  """Compiles each program of a stage when a step first needs it.

  Compiling ahead of the call keeps its time out of the time of a step.
  """

  def __init__(
    self, stage: stage_lib.Stage, settings: settings_lib.Training
  ) -> None:
    """Makes the step; nothing is compiled yet.

    Args:
      stage: The stage.
      settings: Settings of the stage.
    """
    self._stage, self._settings = stage, settings
    self._step = stage.make_step(settings)
    self._compiled: dict[stage_lib.Program, Program] = {}

  def get(self, done: int, *args: PyTree) -> Program:
    """Returns the program of a step.

    Args:
      done: The step, counted from 1.
      *args: State, batch, key of the run, and frozen networks; they are read
        for their shapes and shardings.
    """
    wanted = self._stage.program(self._settings, done)
    if wanted not in self._compiled:
      self._compiled[wanted] = self._compile(wanted, *args)
    return self._compiled[wanted]

  def _compile(self, wanted: stage_lib.Program, *args: PyTree) -> Program:
    """Compiles a program and, if wanted, counts its operations.

    Args:
      wanted: Which program of the stage.
      *args: State, batch, key of the run, and frozen networks.
    """
    step = functools.partial(self._step, program=wanted)

    def seeded(
      state: stage_lib.State,
      batch: inputs.Batch,
      key: Array,
      frozen: stage_lib.Networks,
    ) -> tuple[stage_lib.State, optim.Metrics]:
      # A run that was interrupted draws the same noise as one that was not.
      key = jax.random.fold_in(key, state.step)
      return step(state, batch, key, frozen=frozen)

    start = time.monotonic()
    # The state is donated: a new one would not fit beside it.
    compiled = jax.jit(seeded, donate_argnums=0).lower(*args).compile()
    operations = 0.0
    if self._settings.log.flops:
      trips = self._stage.mean_trips(self._settings)
      operations = flops.of(seeded, *args, trips=trips)
    logging.info(
      "compiled %s in %.1f s", self._stage.title, time.monotonic() - start
    )
    return Program(compiled, operations)
