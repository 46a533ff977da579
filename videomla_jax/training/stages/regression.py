"""The step of stages that regress the networks' outputs to a target.

Pretraining, teacher forcing and consistency differ in their loss only:

  loss(model, average, batch, key, *, frozen, config, first_chunk)
    -> (loss, loss of each frame [B, T])

where `average` is the exponential average of `model`, a constant.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jaxtyping import Array, Float32

from videomla_jax.training import inputs
from videomla_jax.training import optim

Loss = Callable[..., tuple[Float32[Array, ""], Float32[Array, "B T"]]]


def step(
  loss: Loss,
  state: optim.TrainState,
  batch: inputs.Batch,
  key: Array,
  *,
  frozen: dict[str, Any],
  config: Any,
  variant: int | None,
) -> tuple[optim.TrainState, optim.Metrics]:
  """One update: `(state, batch, key) -> (state, metrics)`.

  Args:
    loss: Of the stage.
    state: Before the step.
    batch: Examples of this step.
    key: Of this step.
    frozen: Networks that are read only, by role.
    config: Of the stage.
    variant: Real frames of the first chunk, see `teacher_forcing.plan`.
  """
  given = dict(frozen=frozen, config=config, first_chunk=variant)
  run = jax.value_and_grad(functools.partial(loss, **given), has_aux=True)

  def gradients(batch, key):
    (value, per_frame), gradient = run(state.model, state.ema, batch, key)
    return (value, per_frame.mean(0)), gradient

  (value, per_frame), gradient = optim.accumulated(
    gradients, batch, key, parts=config.optim.accumulate
  )
  state, scalars = optim.apply(state, gradient, value, config.optim)
  first = per_frame[: config.window.chunk_frames]
  later = per_frame[config.window.chunk_frames :]
  scalars |= {"train/loss": value, "train/loss_first_chunk": first.mean()}
  if later.size:
    scalars["train/loss_later_chunks"] = later.mean()
  return state, scalars


def held_out_loss(
  loss: Loss,
  model: Any,
  batch: inputs.Batch,
  key: Array,
  *,
  frozen: dict[str, Any],
  config: Any,
) -> Float32[Array, ""]:
  """The loss of a model, its own average, on data it was not trained on."""
  value, _ = loss(
    model, model, batch, key, frozen=frozen, config=config, first_chunk=None
  )
  return value
