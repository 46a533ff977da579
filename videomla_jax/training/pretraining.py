"""Stage 0: a bidirectional model by flow matching on whole clips.

For the small world this makes what Wan2.1 is to the real one: the source of the
conversion, the real score and the critic. For Wan it continues its training.

  x_σ = (1 - σ) x₀ + σ ε,   L = mean (v(x_σ, σ) - (ε - x₀))²

with one level σ = S(u; s), u uniform, per clip (spec/diffusion.md section 5).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from videomla_jax.diffusion import bidirectional
from videomla_jax.diffusion import flow
from videomla_jax.training import inputs
from videomla_jax.training import optim

TITLE = "pretraining"
STARTS_FROM = {"model": ("", "pretraining", "release")}


def check(config: Any) -> None:
  """Refuses configs of this stage that cannot be trained."""
  if config.model.kind != "dense":
    raise ValueError(
      f"model.kind={config.model.kind!r} must be 'dense' in pretraining; train "
      "the dense model, then convert it."
    )


def variant(config: Any, step: int) -> None:
  """All steps are alike."""
  del config, step


def loss(
  model: Any, batch: inputs.Batch, key: Array, *, config: Any
) -> Float32[Array, ""]:
  """Flow-matching loss of whole clips."""
  clean = inputs.latents(model, batch)
  key_noise, key_sigma = jax.random.split(key)
  u = 1 - jax.random.uniform(key_sigma, clean.shape[:1], jnp.float32)
  sigma = flow.shift(u, config.diffusion.shift)
  noise = jax.random.normal(key_noise, clean.shape, jnp.float32)
  noisy = flow.add_noise(clean, noise, sigma[:, None])
  out = bidirectional.velocity(
    inputs.dit(model), noisy, sigma, inputs.text(model, batch)
  )
  return jnp.mean((out - flow.velocity_target(clean, noise)) ** 2)


def step(
  state: optim.TrainState,
  batch: inputs.Batch,
  key: Array,
  *,
  frozen: dict[str, Any],
  config: Any,
  variant: None,
) -> tuple[optim.TrainState, optim.Metrics]:
  """One update: `(state, batch, key) -> (state, metrics)`."""
  del frozen, variant

  def gradients(batch, key):
    return jax.value_and_grad(loss)(state.model, batch, key, config=config)

  value, gradient = optim.accumulated(
    gradients, batch, key, parts=config.optim.accumulate
  )
  state, scalars = optim.apply(state, gradient, value, config.optim)
  return state, {"train/loss": value} | scalars


def held_out_loss(
  model: Any,
  batch: inputs.Batch,
  key: Array,
  *,
  frozen: dict[str, Any],
  config: Any,
) -> Float32[Array, ""]:
  """The loss of a model on clips it was not trained on."""
  del frozen
  return loss(model, batch, key, config=config)
