"""Optimiser, exponential average, accumulation: one update, skipped if bad."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, PyTree
import optax

from videomla_jax.training import inputs

Metrics = dict[str, Array]
SCHEDULES = ("constant", "cosine")


class TrainState(NamedTuple):
  """What a step changes; its random key is derived from `step`.

  Attributes:
    model: The network that is trained.
    ema: Its exponential average, which is evaluated and handed on; None for
      networks that only serve training.
    optimiser: Moments.
    step: Finished steps.
    skipped: Updates left out because loss or gradient was not finite.
  """

  model: PyTree
  ema: PyTree
  optimiser: PyTree
  step: Int32[Array, ""]
  skipped: Int32[Array, ""]


def make_optimiser(
  config: Any, *, learning_rate: float | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """AdamW with warm-up and clipping by global norm.

  Args:
    config: `optim` of a training config.
    learning_rate: In place of the config's, for a second network.

  Raises:
    ValueError: If the schedule is unknown.
  """
  peak = config.learning_rate if learning_rate is None else learning_rate
  warmup = config.warmup_steps
  schedules = {
    "cosine": lambda: optax.warmup_cosine_decay_schedule(
      0.0, peak, warmup, config.steps, peak * config.final_fraction
    ),
    # optax's own version stays at 0 for ever without a warm-up.
    "constant": lambda: (
      optax.warmup_constant_schedule(0.0, peak, warmup)
      if warmup
      else optax.constant_schedule(peak)
    ),
  }
  if config.schedule not in schedules:
    raise ValueError(
      f"optim.schedule={config.schedule!r} is unknown; use one of {SCHEDULES}."
    )
  schedule = schedules[config.schedule]()
  optimiser = optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    _adam(config),
    optax.add_decayed_weights(config.weight_decay),
    optax.scale_by_learning_rate(schedule),
  )
  return optimiser, schedule


def _adam(config: Any) -> optax.GradientTransformation:
  """Adam's direction; without momentum no first moment is stored."""
  if config.b1:
    return optax.scale_by_adam(config.b1, config.b2, config.eps)
  return optax.scale_by_rms(
    config.b2, config.eps, eps_in_sqrt=False, bias_correction=True
  )


def check(config: Any) -> None:
  """Refuses `optim` values that cannot train."""
  if config.steps <= config.warmup_steps:
    raise ValueError(
      f"optim.steps={config.steps} must exceed "
      f"warmup_steps={config.warmup_steps}; train longer."
    )
  make_optimiser(config)
  if config.accumulate < 1:
    raise ValueError(
      f"optim.accumulate={config.accumulate} must be at least 1; 1 takes the "
      "batch in one piece."
    )
  if not 0 <= config.ema_decay < 1:
    raise ValueError(
      f"optim.ema_decay={config.ema_decay} must be from 0 to below 1; 0 keeps "
      "no average."
    )


def init(model: PyTree, config: Any, *, averaged: bool = True) -> TrainState:
  """The state before the first step.

  Args:
    model: The network.
    config: `optim` of a training config.
    averaged: Whether to keep an average.
  """
  optimiser, _ = make_optimiser(config)
  zero = jnp.zeros((), jnp.int32)
  return TrainState(
    model,
    jax.tree.map(jnp.copy, model) if averaged else None,
    optimiser.init(model),
    zero,
    jnp.copy(zero),
  )


def ema_rate(step: Array, config: Any) -> Array:
  """Decay at a step; with warm-up, young averages move faster."""
  if not config.ema_warmup:
    return jnp.float32(config.ema_decay)
  return jnp.minimum(config.ema_decay, (1.0 + step) / (10.0 + step))


def update_ema(ema: PyTree, model: PyTree, rate: Array) -> PyTree:
  """Moves the average towards the model."""
  return jax.tree.map(lambda a, b: rate * a + (1 - rate) * b, ema, model)


def apply(
  state: TrainState,
  gradient: PyTree,
  loss: Array,
  config: Any,
  *,
  learning_rate: float | None = None,
) -> tuple[TrainState, Metrics]:
  """One update of model, average and moments.

  Where loss or gradient is not finite nothing changes but the counters.

  Args:
    state: Before the step.
    gradient: In the structure of the model.
    loss: Its value, for the check.
    config: `optim` of a training config.
    learning_rate: See `make_optimiser`.
  """
  optimiser, schedule = make_optimiser(config, learning_rate=learning_rate)
  norm = optax.global_norm(gradient)
  finite = jnp.isfinite(norm) & jnp.isfinite(loss)
  # A gradient of zeros keeps the arithmetic below finite as well.
  safe = jax.tree.map(lambda g: jnp.where(finite, g, 0), gradient)
  updates, moments = optimiser.update(safe, state.optimiser, state.model)
  model = optax.apply_updates(state.model, updates)
  ema = None
  if state.ema is not None:
    ema = update_ema(state.ema, model, ema_rate(state.step, config))
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


def accumulated(
  gradients: Callable[[inputs.Batch, Array], tuple[Any, PyTree]],
  batch: inputs.Batch,
  key: Array,
  *,
  parts: int,
) -> tuple[Any, PyTree]:
  """Mean of values and gradients over parts of a batch, one at a time.

  Args:
    gradients: From a batch and a key to values (any pytree of float arrays)
      and gradients, both means over the examples.
    batch: The whole batch.
    key: Folded with the index of the part; unchanged for one part.
    parts: How many.
  """
  if parts == 1:
    return gradients(batch, key)
  pieces = inputs.split(batch, parts)

  def step(total, xs):
    piece, index = xs
    new = gradients(piece, jax.random.fold_in(key, index))
    return jax.tree.map(lambda a, b: a + b / parts, total, new), None

  first = jax.tree.map(lambda x: x[0], pieces)
  like = jax.eval_shape(gradients, first, key)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
  return jax.lax.scan(step, zeros, (pieces, jnp.arange(parts)))[0]
