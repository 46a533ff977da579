"""The step of stages that regress a network's output to a target.

Pretraining, teacher forcing and consistency differ in their loss alone. A loss
takes `LossArguments` and the stage's settings, and returns `Losses`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float32, PyTree

from videomla_jax.training import inputs
from videomla_jax.training import optim
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage as stage_lib


class LossArguments(NamedTuple):
  """What the loss of a regression is computed from.

  Attributes:
    model: The network that is trained; the loss is differentiated by it.
    average: The exponential average of `model`, a constant.
    frozen: Role -> network that is only read.
    batch: Clips and prompts.
    key: Random key of the noise and its levels.
    first_chunk: Number of real frames in the first chunk; None for a whole
      chunk. See `diffusion.teacher_forcing.plan`.
  """

  model: inputs.Network
  average: inputs.Network | None
  frozen: stage_lib.Networks
  batch: inputs.Batch
  key: Array
  first_chunk: int | None = None


# The loss, and the same for every frame, which shows what context is worth.
Losses = tuple[Float32[Array, ""], Float32[Array, "B T"]]
Loss = Callable[..., Losses]


def make_step(loss: Loss, settings: settings_lib.Training) -> stage_lib.Step:
  """Returns a step that is one update along the gradient of the loss.

  Args:
    loss: Loss of the stage.
    settings: Settings of the stage.
  """
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
      # The program of a regression is the length of its first chunk.
      arguments = LossArguments(
        model, state.ema, frozen, batch, key, first_chunk=program
      )
      return loss(arguments, settings)

    def gradients(
      batch: inputs.Batch, key: Array
    ) -> tuple[tuple[Float32[Array, ""], Float32[Array, "T"]], PyTree]:
      # The average is closed over and not an argument, so it is a constant.
      differentiate = jax.value_and_grad(loss_of, has_aux=True)
      (value, per_frame), gradient = differentiate(state.model, batch, key)
      # The mean is over examples, so that microbatches can be averaged.
      return (value, per_frame.mean(0)), gradient

    (value, per_frame), gradient = optim.accumulated(
      gradients, batch, key, microbatches=settings.optim.accumulate
    )
    state, scalars = optim.apply(state, gradient, value, settings.optim)
    first, later = per_frame[:chunk], per_frame[chunk:]
    scalars |= {"train/loss": value, "train/loss_first_chunk": first.mean()}
    if later.size:  # A clip may be a single chunk.
      scalars["train/loss_later_chunks"] = later.mean()
    return state, scalars

  return step


def held_out_loss(
  loss: Loss, settings: settings_lib.Training
) -> stage_lib.HeldOutLoss:
  """Returns the loss of a model on data that it was not trained on.

  Args:
    loss: Loss of the stage.
    settings: Settings of the stage.
  """

  def held_out(
    model: inputs.Network,
    batch: inputs.Batch,
    key: Array,
    *,
    frozen: stage_lib.Networks,
  ) -> Float32[Array, ""]:
    # The averaged model is evaluated, so it is its own average.
    arguments = LossArguments(model, model, frozen, batch, key)
    return loss(arguments, settings)[0]

  return held_out


def given_first_frame(every: int, step: int) -> stage_lib.Program:
  """Returns how many real frames the first chunk has in a step.

  Every so many steps it is one frame, as when a picture is continued, so that
  the network learns both beginnings of a video.

  Args:
    every: Steps from one such step to the next; 0 for never.
    step: The step, counted from 1.

  Returns:
    1, or None for a whole chunk.
  """
  return 1 if every and step % every == 0 else None
