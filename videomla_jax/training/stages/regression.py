"""The step of stages that regress a network's output to a target.

Pretraining, teacher forcing and consistency differ in their loss alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float32, PyTree

from videomla_jax.training import inputs
from videomla_jax.training import optim
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage as stage_lib


class LossInputs(NamedTuple):
  """What the loss of a regression is computed from.

  Attributes:
    model: The network that is trained; the loss is differentiated by it.
    average: Its exponential average, a constant.
    frozen: Networks that are only read, by role.
    batch: Examples.
    key: Random key of the noise and its levels.
    first_chunk: Real frames of the first chunk, see `teacher_forcing.plan`.
  """

  model: inputs.Network
  average: inputs.Network | None
  frozen: stage_lib.Networks
  batch: inputs.Batch
  key: Array
  first_chunk: int | None = None


# The loss, and the loss of each frame.
Losses = tuple[Float32[Array, ""], Float32[Array, "B T"]]
Loss = Callable[..., Losses]  # of LossInputs and the stage's settings


def make_step(loss: Loss, settings: settings_lib.Training) -> stage_lib.Step:
  """Returns the step: one update by the gradient of the loss.

  Args:
    loss: Loss of the stage.
    settings: Settings of the stage.
  """
  optim_settings = settings.optim
  chunk = settings.window.chunk_frames

  def step(
    state: optim.TrainState,
    batch: inputs.Batch,
    key: Array,
    *,
    frozen: stage_lib.Networks,
    program: stage_lib.Program,
  ) -> tuple[optim.TrainState, optim.Metrics]:
    def loss_of(
      model: inputs.Network, batch: inputs.Batch, key: Array
    ) -> Losses:
      return loss(
        LossInputs(model, state.ema, frozen, batch, key, program), settings
      )

    def gradients(
      batch: inputs.Batch, key: Array
    ) -> tuple[tuple[Array, Float32[Array, "T"]], PyTree]:
      differentiate = jax.value_and_grad(loss_of, has_aux=True)
      (value, per_frame), gradient = differentiate(state.model, batch, key)
      return (value, per_frame.mean(0)), gradient

    (value, per_frame), gradient = optim.accumulated(
      gradients, batch, key, microbatches=optim_settings.accumulate
    )
    state, scalars = optim.apply(state, gradient, value, optim_settings)
    first, later = per_frame[:chunk], per_frame[chunk:]
    scalars |= {"train/loss": value, "train/loss_first_chunk": first.mean()}
    if later.size:
      scalars["train/loss_later_chunks"] = later.mean()
    return state, scalars

  return step


def held_out_loss(
  loss: Loss, settings: settings_lib.Training
) -> stage_lib.HeldOutLoss:
  """Returns the loss of a model on data that it was not trained on.

  Args:
    loss: Loss of the stage; the model stands for its own average.
    settings: Settings of the stage.
  """

  def held_out(
    model: inputs.Network,
    batch: inputs.Batch,
    key: Array,
    *,
    frozen: stage_lib.Networks,
  ) -> Float32[Array, ""]:
    return loss(LossInputs(model, model, frozen, batch, key), settings)[0]

  return held_out


def given_first_frame(every: int, step: int) -> stage_lib.Program:
  """Returns the program of a step of a causal stage.

  Every so many steps the first chunk is one given frame, as when a picture is
  continued, so that the network learns both beginnings.

  Args:
    every: Steps between two such steps; 0 for never.
    step: The step, counted from 1.

  Returns:
    Real frames of the first chunk; None for a whole chunk.
  """
  return 1 if every and step % every == 0 else None
