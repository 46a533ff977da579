"""One update of a network: optimiser, exponential average, accumulation.

An update is left out and counted if its loss, its gradient or the parameters
after it are not finite (docs/method.md, section 13).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Int32, PyTree
import optax

from videomla_jax.training import inputs
from videomla_jax.training import optimiser as optimiser_lib
from videomla_jax.training import settings as settings_lib

Metrics = dict[str, Array]


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


def init(
  model: PyTree, settings: settings_lib.Optim, *, averaged: bool = True
) -> TrainState:
  """Returns the state before the first step.

  Args:
    model: Parameters of the network.
    settings: Group `optim` of a config.
    averaged: Whether to keep an exponential average.
  """
  optimiser, _ = optimiser_lib.make_optimiser(settings)
  zero = jnp.zeros((), jnp.int32)
  # These are copies: a state is donated to its step, and no buffer can be
  # donated twice.
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
  # TensorFlow warms up its moving averages by the same formula.
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

  Where loss, gradient or the new parameters are not finite, nothing changes but
  the counters.

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
  optimiser, schedule = optimiser_lib.make_optimiser(
    settings, learning_rate=learning_rate
  )
  norm = optax.global_norm(gradient)  # before clipping
  finite = jnp.isfinite(norm) & jnp.isfinite(loss)
  # A gradient of zeros keeps the arithmetic below finite as well.
  safe = jax.tree.map(lambda g: jnp.where(finite, g, 0), gradient)
  # Moments see zeros as well, but what they become is dropped below.
  updates, moments = optimiser.update(safe, state.optimiser, state.model)
  model = optax.apply_updates(state.model, updates)
  # A norm overflows before single numbers do, such as those of 1e30, which are
  # as lost as NaN. Counters among the moments would overflow in its place.
  floats = [
    x
    for x in jax.tree.leaves((model, moments))
    if jnp.issubdtype(x.dtype, jnp.floating)
  ]
  finite &= jnp.isfinite(optax.global_norm(floats))
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
    # This is the same program with the same noise as without accumulation.
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
