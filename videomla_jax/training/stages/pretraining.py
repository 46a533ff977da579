"""Stage 0: a bidirectional model by flow matching on whole clips.

For the small world this makes what Wan2.1 is to the real one: the source of the
conversion, the real score and the critic. For Wan it continues its training.

  x_σ = (1 - σ) x₀ + σ ε,   L = mean (v(x_σ, σ) - (ε - x₀))²

with σ = S(u; s), u uniform (spec/diffusion.md section 5). A clip has one level,
as when it is sampled; with a chance of `diffusion.frame_levels` each of its
frames has one of its own (arXiv:2407.01392), so that a young model learns
motion from frames that it can see.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from videomla_jax.diffusion import bidirectional
from videomla_jax.diffusion import flow
from videomla_jax.training import inputs

TITLE = "pretraining"
STARTS_FROM = {"model": ("", "pretraining", "teacher_forcing", "release")}


def check(config: Any) -> None:
  """Refuses configs of this stage that cannot be trained."""
  if config.model.kind != "dense":
    raise ValueError(
      f"model.kind={config.model.kind!r} must be 'dense' in pretraining; train "
      "the dense model, then convert it."
    )


def loss(
  model: Any,
  average: Any,
  batch: inputs.Batch,
  key: Array,
  *,
  frozen: dict[str, Any],
  config: Any,
  first_chunk: int | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, "B T"]]:
  """Flow-matching loss of whole clips, see `regression`."""
  del average, frozen, first_chunk
  clean = inputs.latents(model, batch)
  key_noise, key_sigma = jax.random.split(key)
  sigma = flow.shift(
    _levels(key_sigma, clean.shape[:2], config.diffusion.frame_levels),
    config.diffusion.shift,
  )
  noise = jax.random.normal(key_noise, clean.shape, jnp.float32)
  noisy = flow.add_noise(clean, noise, sigma)
  out = bidirectional.velocity(
    inputs.dit(model), noisy, sigma, inputs.text(model, batch)
  )
  error = (out - flow.velocity_target(clean, noise)) ** 2
  return error.mean(), error.mean(axis=(2, 3, 4))


def _levels(
  key: Array, shape: tuple[int, ...], frame_levels: float
) -> Float32[Array, "B T"]:
  """Uniform in (0, 1], one for a clip or one for each of its frames."""
  key_level, key_kind = jax.random.split(key)
  u = 1 - jax.random.uniform(key_level, shape, jnp.float32)
  own = jax.random.bernoulli(key_kind, frame_levels, (shape[0], 1))
  return jnp.where(own, u, u[:, :1])
