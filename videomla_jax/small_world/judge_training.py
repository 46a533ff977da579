"""The loop that trains a small judge on frames that are all in memory."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from flax import nnx
import jax
from jaxtyping import Array, Float, PRNGKeyArray
import numpy as np
import optax


@runtime_checkable
class Recipe(Protocol):
  """What the loop reads of how a judge is trained.

  Attributes:
    num_epochs: Passes over the frames.
    batch_size: Frames of a step.
    learning_rate: Peak rate of AdamW, decayed along a cosine.
  """

  @property
  def num_epochs(self) -> int:
    """Number of passes over the frames."""

  @property
  def batch_size(self) -> int:
    """Number of frames of a step."""

  @property
  def learning_rate(self) -> float:
    """Peak rate of AdamW."""


def fit[Network: nnx.Module, Frames: tuple[np.ndarray, ...]](
  judge: Network,
  data: Frames,
  loss: Callable[[Network, Any, nnx.Rngs], Float[Array, ""]],
  *,
  rng: np.random.Generator,
  key: PRNGKeyArray,
  recipe: Recipe,
) -> Network:
  """Runs AdamW over shuffled epochs, batches dispatched ahead.

  Args:
    judge: The untrained network.
    data: Named tuple of arrays whose first axis are the frames.
    loss: Mean loss of a judge on a batch of such arrays, with dropout.
    rng: Source of the order.
    key: Source of dropout.
    recipe: Epochs, batches and learning rate.

  Returns:
    The trained network.
  """
  num_frames, batch_size = len(data[0]), recipe.batch_size
  steps_per_epoch = num_frames // batch_size
  num_steps = steps_per_epoch * recipe.num_epochs
  rate = optax.warmup_cosine_decay_schedule(
    0.0, recipe.learning_rate, min(50, num_steps // 5), num_steps
  )
  optimizer = optax.adamw(rate, weight_decay=0.05)
  state = optimizer.init(judge)

  @jax.jit
  def step(
    judge: Network, state: optax.OptState, batch: Any, key: PRNGKeyArray
  ) -> tuple[Network, optax.OptState]:
    gradient = jax.grad(lambda x: loss(x, batch, nnx.Rngs(dropout=key)))(judge)
    updates, state = optimizer.update(gradient, state, judge)
    return optax.apply_updates(judge, updates), state

  for _ in range(recipe.num_epochs):
    order = rng.permutation(num_frames)
    for i in range(steps_per_epoch):
      rows = order[i * batch_size :][:batch_size]
      # There is one transfer ahead of each step, which then only dispatches.
      batch = jax.device_put(type(data)(*(array[rows] for array in data)))
      key, step_key = jax.random.split(key)
      judge, state = step(judge, state, batch, step_key)
  return judge
