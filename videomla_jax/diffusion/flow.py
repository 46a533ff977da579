"""Rectified flow: noising, conversions, schedules, guidance.

With clean latents x₀, noise ε and noise level σ in [0, 1] (arXiv:2209.03003):

  x_σ = (1 - σ) x₀ + σ ε                      (6.1)
  v   = dx/dσ = ε - x₀                        (6.2)
  x₀  = x_σ - σ v                             (6.3)
  ε   = x_σ + (1 - σ) v                       (6.4)
  v   = (x_σ - x₀) / σ,  σ > 0                (6.5)

The network sees the timestep t = 1000 σ and predicts v. σ(t) = t / 1000 is
exact and in float32: no table is searched. A schedule is warped by

  S(u; s) = s u / (1 + (s - 1) u)             (6.6)

which spends more steps on noise for s > 1. Equations have the numbers of
docs/method.md, section 6.
"""

from collections.abc import Callable
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32
import numpy as np

from videomla_jax.models import wan_config

Frames = Float[Array, "*B T H W C"]
Level = Float32[Array, "*#B #T"]


def _per_pixel(sigma: Array) -> Array:
  """Gives a level per frame the axes of rows, columns and channels."""
  # Levels stay float32 when latents are bfloat16, which holds 0.98 as 0.9805.
  return jnp.asarray(sigma, jnp.float32)[..., None, None, None]


def add_noise(x0: Frames, noise: Frames, sigma: Level) -> Frames:
  """Mixes clean latents with noise, one level per frame, Eq. (6.1)."""
  sigma = _per_pixel(sigma)
  return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Frames, noise: Frames) -> Frames:
  """Returns the velocity that the network learns, Eq. (6.2)."""
  return noise - x0


def x0_from_velocity(x: Frames, velocity: Frames, sigma: Level) -> Frames:
  """Returns the clean latents that a velocity points to, Eq. (6.3)."""
  return x - _per_pixel(sigma) * velocity


def noise_from_velocity(x: Frames, velocity: Frames, sigma: Level) -> Frames:
  """Returns the noise that a velocity comes from, Eq. (6.4)."""
  return x + (1 - _per_pixel(sigma)) * velocity


def velocity_from_x0(x: Frames, x0: Frames, sigma: Level) -> Frames:
  """Returns the velocity between clean and noisy latents, Eq. (6.5), σ > 0."""
  return (x - x0) / _per_pixel(sigma)


def euler_step(
  x: Frames, velocity: Frames, sigma: Level, next_sigma: Level
) -> Frames:
  """Takes one step of the flow ODE from σ to the next σ, Eq. (7.1)."""
  # Levels are subtracted first: the difference of two products loses digits.
  step = jnp.asarray(next_sigma, jnp.float32) - sigma
  return x + _per_pixel(step) * velocity


def guide(conditional: Array, unconditional: Array, weight: float) -> Array:
  """Guides without a classifier, w in `uncond + w (cond - uncond)`."""
  return unconditional + weight * (conditional - unconditional)


def shift[Number: (float, np.ndarray, Array)](u: Number, s: float) -> Number:
  """Warps a level in [0, 1] and keeps 0 and 1, Eq. (6.6)."""
  return s * u / (1 + (s - 1) * u)


def unshift[Number: (float, np.ndarray, Array)](
  sigma: Number, s: float
) -> Number:
  """Returns the level in [0, 1] that `shift` warps to σ, Eq. (6.7)."""
  return sigma / (s - (s - 1) * sigma)


def sigma_table(num_steps: int, *, s: float) -> Float[np.ndarray, "n"]:
  """Returns levels S(1 - i/n), i = 0..n-1, descending, without 0, float64."""
  return shift(1 - np.arange(num_steps) / num_steps, s)


def few_step_sigmas(
  steps: tuple[float | int, ...], *, s: float | int
) -> Float[np.ndarray, "n"]:
  """Warps a list of timesteps such as (1000, 750, 500, 250), Eq. (6.9)."""
  return shift(np.asarray(steps, np.float64) / wan_config.MAX_TIMESTEP, s)


def training_weight(sigma: Array, *, s: float = 5.0) -> Array:
  """Returns the bell-shaped loss weight of stage 1, Eq. (6.11).

  Zero at σ = 1, largest at σ = 0.5. The constant makes the mean 1 over the
  1000-entry table of shift `s`.
  """
  # The original searches a table of 1000 entries; this is what the table holds.
  lowest = math.exp(-0.5)

  def bell[Number: (np.ndarray, Array)](
    level: Number, exp: Callable[[Number], Number]
  ) -> Number:
    return exp(-2 * (level - 0.5) ** 2) - lowest

  mean = bell(sigma_table(1000, s=s), np.exp).mean()
  return bell(sigma, jnp.exp) / mean
