"""One update of a network: optimiser, exponential average, accumulation.

An update whose loss or gradient is not finite is left out and counted
(docs/method.md, section 13).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Int32, PyTree
import optax

from videomla_jax.training import inputs
from videomla_jax.training import settings as settings_lib

Metrics = dict[str, Array]
SCHEDULES = ("constant", "cosine")


class TrainState(NamedTuple):
  """What the updates of a network change.

  Attributes:
    model: Parameters of the network that is trained.
    ema: Exponential average of the parameters, which is evaluated and handed
      on; None for networks that only serve training.
    optimiser: Moments of the optimiser.
    step: Number of finished steps; random keys are derived from it.
    skipped: Number of updates left out because they were not finite.
  """

  model: PyTree
  ema: PyTree
  optimiser: PyTree
  step: Int32[Array, ""]
  skipped: Int32[Array, ""]


def make_optimiser(
  settings: settings_lib.Optim, *, learning_rate: float | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Builds AdamW with warm-up and clipping by the global norm.

  Args:
    settings: Group `optim` of a config.
    learning_rate: Highest learning rate of a second network; that of the
      settings by default.

  Returns:
    The optimiser, and the learning rate of each step.

  Raises:
    ValueError: If the schedule is unknown.
  """
  peak = settings.learning_rate if learning_rate is None else learning_rate
  warmup = settings.warmup_steps
  schedules = {
    "cosine": lambda: optax.warmup_cosine_decay_schedule(
      0.0, peak, warmup, settings.steps, peak * settings.final_fraction
    ),
    # optax's own version stays at 0 for ever without a warm-up.
    "constant": lambda: (
      optax.warmup_constant_schedule(0.0, peak, warmup)
      if warmup
      else optax.constant_schedule(peak)
    ),
  }
  if settings.schedule not in schedules:
    raise ValueError(
      f"optim.schedule={settings.schedule!r} is unknown; use one of "
      f"{SCHEDULES}."
    )
  schedule = schedules[settings.schedule]()
  # The order of AdamW: weights decay by the learning rate, and their decay is
  # no part of the gradient that is clipped.
  optimiser = optax.chain(
    optax.clip_by_global_norm(settings.clip_norm),
    _adam(settings),
    optax.add_decayed_weights(settings.weight_decay),
    optax.scale_by_learning_rate(schedule),
  )
  return optimiser, schedule


def _adam(settings: settings_lib.Optim) -> optax.GradientTransformation:
  """Builds Adam's direction; without momentum it stores no first moment."""
  if settings.b1:
    return optax.scale_by_adam(settings.b1, settings.b2, settings.eps)
  # Saves as much memory as the parameters take, for each network.
  return optax.scale_by_rms(
    settings.b2, settings.eps, eps_in_sqrt=False, bias_correction=True
  )


def check(settings: settings_lib.Optim) -> None:
  """Refuses values that cannot train.

  Args:
    settings: Group `optim` of a config.

  Raises:
    ValueError: With the field, the rule and the way out.
  """
  if settings.steps <= settings.warmup_steps:
    raise ValueError(
      f"optim.steps={settings.steps} must exceed "
      f"warmup_steps={settings.warmup_steps}; train longer."
    )
  make_optimiser(settings)
  if settings.accumulate < 1:
    raise ValueError(
      f"optim.accumulate={settings.accumulate} must be at least 1; 1 takes the "
      "batch in one piece."
    )
  if not 0 <= settings.ema_decay < 1:
    raise ValueError(
      f"optim.ema_decay={settings.ema_decay} must be from 0 to below 1; 0 "
      "keeps no average."
    )


def init(
  model: PyTree, settings: settings_lib.Optim, *, averaged: bool = True
) -> TrainState:
  """Returns the state before the first step.

  Args:
    model: Parameters of the network.
    settings: Group `optim` of a config.
    averaged: Whether to keep an exponential average.
  """
  optimiser, _ = make_optimiser(settings)
  zero = jnp.zeros((), jnp.int32)
  # Copies: a state is donated to its step, and no buffer can be donated twice.
  return TrainState(
    model,
    jax.tree.map(jnp.copy, model) if averaged else None,
    optimiser.init(model),
    zero,
    jnp.copy(zero),
  )


def ema_rate(
  step: Int[Array, ""], settings: settings_lib.Optim
) -> Float32[Array, ""]:
  """Returns the decay of the average at a step.

  With warm-up, young averages move faster: they would otherwise hold random
  weights for thousands of steps.

  Args:
    step: Number of finished steps.
    settings: Group `optim` of a config.
  """
  if not settings.ema_warmup:
    return jnp.float32(settings.ema_decay)
  return jnp.minimum(settings.ema_decay, (1.0 + step) / (10.0 + step))


def update_ema(ema: PyTree, model: PyTree, rate: Float32[Array, ""]) -> PyTree:
  """Moves the average towards the model.

  Args:
    ema: The average.
    model: The parameters after the update.
    rate: Decay of the average, 0..1.
  """
  return jax.tree.map(lambda a, b: rate * a + (1 - rate) * b, ema, model)


def apply(
  state: TrainState,
  gradient: PyTree,
  loss: Float32[Array, ""],
  settings: settings_lib.Optim,
  *,
  learning_rate: float | None = None,
) -> tuple[TrainState, Metrics]:
  """Updates model, average and moments.

  Where loss or gradient is not finite nothing changes but the counters.

  Args:
    state: The state before the step.
    gradient: Gradient of the loss, in the structure of the model.
    loss: The loss, which is only checked.
    settings: Group `optim` of a config.
    learning_rate: Highest learning rate of a second network; that of the
      settings by default.

  Returns:
    The state after the step, and scalars.
  """
  optimiser, schedule = make_optimiser(settings, learning_rate=learning_rate)
  norm = optax.global_norm(gradient)  # before clipping
  finite = jnp.isfinite(norm) & jnp.isfinite(loss)
  # A gradient of zeros keeps the arithmetic below finite as well.
  safe = jax.tree.map(lambda g: jnp.where(finite, g, 0), gradient)
  # Moments see zeros as well, but what they become is dropped below.
  updates, moments = optimiser.update(safe, state.optimiser, state.model)
  model = optax.apply_updates(state.model, updates)
  ema = None
  if state.ema is not None:
    ema = update_ema(state.ema, model, ema_rate(state.step, settings))
  model, ema, moments = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    (model, ema, moments),
    (state.model, state.ema, state.optimiser),
  )
  skipped = state.skipped + (1 - finite.astype(jnp.int32))
  scalars = {
    "train/grad_norm": norm,
    "train/learning_rate": schedule(state.step),
    "train/skipped": skipped,
  }
  state = TrainState(model, ema, moments, state.step + 1, skipped)
  return state, scalars


def accumulated[Values](
  gradients: Callable[[inputs.Batch, Array], tuple[Values, PyTree]],
  batch: inputs.Batch,
  key: Array,
  *,
  microbatches: int,
) -> tuple[Values, PyTree]:
  """Returns the mean of values and gradients over the microbatches of a batch.

  They are computed one at a time, so that only one needs memory.

  Args:
    gradients: Takes a batch and a key and returns values (any pytree of float
      arrays) and gradients, both means over the examples.
    batch: The whole batch.
    key: Random key, folded with the index of the microbatch; with a single one
      it is passed on as it is.
    microbatches: Number of microbatches that the batch is dealt out to.
  """
  if microbatches == 1:
    # The same program and the same noise as without accumulation.
    return gradients(batch, key)
  dealt = inputs.split(batch, microbatches)

  def step(
    total: tuple[Values, PyTree], xs: tuple[inputs.Batch, Array]
  ) -> tuple[tuple[Values, PyTree], None]:
    microbatch, index = xs
    new = gradients(microbatch, jax.random.fold_in(key, index))
    return jax.tree.map(lambda a, b: a + b / microbatches, total, new), None

  # A sum that starts at zero keeps one copy of `gradients` in the program.
  first = jax.tree.map(lambda x: x[0], dealt)
  like = jax.eval_shape(gradients, first, key)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
  return jax.lax.scan(step, zeros, (dealt, jnp.arange(microbatches)))[0]
