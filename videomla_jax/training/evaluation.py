"""The loss of the averaged model on held-out clips."""

import time

import jax
import numpy as np

from videomla_jax import sharding
from videomla_jax.training import batches
from videomla_jax.training import inputs
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage as stage_lib


class Evaluation:
  """Loss on fixed held-out batches with fixed noise.

  Nothing changes from one evaluation to the next but the model, so even small
  differences mean something.
  """

  def __init__(
    self,
    stage: stage_lib.Stage,
    settings: settings_lib.Training,
    frozen: stage_lib.Networks,
    mesh: jax.sharding.Mesh,
  ) -> None:
    """Reads the batches; the loss is compiled at first use.

    Args:
      stage: The stage, which may have no such loss.
      settings: Settings of the stage.
      frozen: Networks that are only read.
      mesh: The devices.
    """
    self._batches: list[dict[str, np.ndarray]] = []
    self._frozen, self._mesh = frozen, mesh
    count = settings.eval.batches
    if stage.held_out_loss is None or not count:
      return
    # Its inputs are not donated: the average is needed for the next step.
    self._loss = jax.jit(stage.held_out_loss(settings))
    held_out = batches.loader(
      settings.data,
      "test",
      batch_size=settings.data.batch_size,
      seed=settings.seed,
      clips=stage.reads_clips,
    )
    # Batches are read once and kept in host memory, so that every evaluation
    # sees the same clips.
    self._batches = [next(held_out) for _ in range(count)]

  def __call__(self, model: inputs.Network) -> dict[str, float]:
    """Returns loss and time, or nothing where a stage has no such loss.

    Args:
      model: The averaged model.
    """
    if not self._batches:
      return {}
    start = time.monotonic()
    losses = [
      float(
        self._loss(
          model,
          sharding.put_batch(batch, self._mesh),
          jax.random.key(i),  # the noise of this batch, every time
          frozen=self._frozen,
        )
      )
      for i, batch in enumerate(self._batches)
    ]
    return {
      "eval/loss": sum(losses) / len(losses),
      "perf/eval_seconds": time.monotonic() - start,
    }
