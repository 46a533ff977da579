"""The compiled programs of a stage: one step, or several in one call.

Several steps are one loop on the device, which then need not wait for the host
between them. Steps of a stage may have programs of their own; the loop holds
all that a call needs and takes one by its number in each step.
"""

from collections.abc import Callable
import functools
import time
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, PyTree
import numpy as np

from videomla_jax.costs import flops
from videomla_jax.training import inputs
from videomla_jax.training import optim
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage as stage_lib

# (state, batch, key of the run, frozen) -> state, scalars
Call = Callable[..., tuple[stage_lib.State, optim.Metrics]]


class Program(NamedTuple):
  """Compiled steps and what they cost.

  Attributes:
    step: Takes state, batch, key of the run and frozen networks; returns the
      next state and scalars. The state is donated. Of several steps, batches
      lie along a first axis, scalars are means, and "train/skipped" has the
      count after each step.
    flops: Operations of all steps, over all devices; 0 if they are not counted.
  """

  step: Call
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
    self._compiled: dict[object, jax.stages.Compiled] = {}
    self._flops: dict[stage_lib.Program, float] = {}

  def get(self, done: int, *args: PyTree, count: int = 1) -> Program:
    """Returns the program of one step or of several.

    Args:
      done: The last step, counted from 1.
      *args: State, batch, key of the run, and frozen networks; they are read
        for their shapes and shardings.
      count: Steps of the call.
    """
    steps = range(done - count + 1, done + 1)
    wanted = [self._stage.program(self._settings, step) for step in steps]
    if count == 1:
      step = self._compile(wanted[0], self._seeded(wanted[0]), *args)
      return Program(step, self._operations(wanted[0], *args))
    kinds = tuple(dict.fromkeys(sorted(wanted, key=repr)))
    which = np.array([kinds.index(x) for x in wanted], np.int32)
    loop = self._compile((count, kinds), self._loop(kinds), *args, which)
    operations = sum(self._operations(x, *args, stacked=True) for x in wanted)
    return Program(lambda *args: loop(*args, which), operations)

  def _seeded(self, wanted: stage_lib.Program) -> Call:
    """Returns a step with a key of its own.

    Args:
      wanted: Which program of the stage.
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

    return seeded

  def _loop(self, kinds: tuple[stage_lib.Program, ...]) -> Call:
    """Returns steps one after the other.

    Args:
      kinds: Programs of the stage that occur among them.
    """
    branches = [self._seeded(kind) for kind in kinds]

    def loop(
      state: stage_lib.State,
      batch: inputs.Batch,
      key: Array,
      frozen: stage_lib.Networks,
      which: Int32[Array, "steps"],
    ) -> tuple[stage_lib.State, optim.Metrics]:
      def step(
        state: stage_lib.State, index: Int32[Array, ""]
      ) -> tuple[stage_lib.State, optim.Metrics]:
        arguments = state, _at(batch, index), key, frozen
        if len(branches) == 1:
          return branches[0](*arguments)
        return jax.lax.switch(which[index], branches, *arguments)

      state, scalars = jax.lax.scan(step, state, jnp.arange(len(which)))
      means = jax.tree.map(lambda x: x.astype(jnp.float32).mean(), scalars)
      return state, means | {"train/skipped": scalars["train/skipped"]}

    return loop

  def _compile(
    self, name: object, function: Call, *args: PyTree
  ) -> jax.stages.Compiled:
    """Compiles a function unless this was done before.

    Args:
      name: What tells the function from all others of the stage.
      function: Takes the arguments; the first is donated.
      *args: The arguments.
    """
    if name not in self._compiled:
      start = time.monotonic()
      # The state is donated: a new one would not fit beside it.
      jitted = jax.jit(function, donate_argnums=0)
      self._compiled[name] = jitted.lower(*args).compile()
      seconds = time.monotonic() - start
      logging.info("compiled %s in %.1f s", self._stage.title, seconds)
    return self._compiled[name]

  def _operations(
    self, wanted: stage_lib.Program, *args: PyTree, stacked: bool = False
  ) -> float:
    """Counts the operations of a step, if that is wanted.

    Args:
      wanted: Which program of the stage.
      *args: State, batch, key of the run, and frozen networks.
      stacked: Whether the batch has those of several steps.
    """
    if not self._settings.log.flops:
      return 0.0
    if wanted not in self._flops:
      state, batch, *rest = args
      if stacked:
        batch = jax.eval_shape(lambda x: _at(x, 0), batch)
      trips = self._stage.mean_trips(self._settings)
      self._flops[wanted] = flops.of(
        self._seeded(wanted), state, batch, *rest, trips=trips
      )
    return self._flops[wanted]


def _at(batch: inputs.Batch, index: int | Int32[Array, ""]) -> inputs.Batch:
  """Returns the batch of one step of several."""
  # The negative prompt is the same in all of them.
  return {n: x if n == "negative" else x[index] for n, x in batch.items()}
