"""Rectified flow: noising, conversions, schedules, guidance.

With clean latents x₀, noise ε and noise level σ in [0, 1] (arXiv:2209.03003):

  x_σ = (1 - σ) x₀ + σ ε                      (1)
  v   = dx/dσ = ε - x₀                        (2)
  x₀  = x_σ - σ v                             (3)
  ε   = x_σ + (1 - σ) v                       (4)
  v   = (x_σ - x₀) / σ,  σ > 0                (5)

The network sees the timestep t = 1000 σ and predicts v. σ(t) = t / 1000 is
exact and in float32: no table is searched. A schedule is warped by

  S(u; s) = s u / (1 + (s - 1) u)             (8)

which spends more steps on noise for s > 1. Numbers follow spec/diffusion.md.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32
import numpy as np

from videomla_jax.models import wan_config

Frames = Float[Array, "*B T H W C"]
Level = Float32[Array, "*#B #T"]


def _per_pixel(sigma: Array) -> Array:
  return jnp.asarray(sigma, jnp.float32)[..., None, None, None]


def add_noise(x0: Frames, noise: Frames, sigma: Level) -> Frames:
  """Eq. (1), one noise level per frame."""
  sigma = _per_pixel(sigma)
  return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Frames, noise: Frames) -> Frames:
  """Eq. (2), what the network learns."""
  return noise - x0


def x0_from_velocity(x: Frames, velocity: Frames, sigma: Level) -> Frames:
  """Eq. (3)."""
  return x - _per_pixel(sigma) * velocity


def noise_from_velocity(x: Frames, velocity: Frames, sigma: Level) -> Frames:
  """Eq. (4)."""
  return x + (1 - _per_pixel(sigma)) * velocity


def velocity_from_x0(x: Frames, x0: Frames, sigma: Level) -> Frames:
  """Eq. (5); σ must not be 0."""
  return (x - x0) / _per_pixel(sigma)


def euler_step(
  x: Frames, velocity: Frames, sigma: Level, next_sigma: Level
) -> Frames:
  """One step of the flow ODE from σ to the next σ."""
  step = jnp.asarray(next_sigma, jnp.float32) - sigma
  return x + _per_pixel(step) * velocity


def guide(conditional: Array, unconditional: Array, weight: float) -> Array:
  """Classifier-free guidance, w in `uncond + w (cond - uncond)`."""
  return unconditional + weight * (conditional - unconditional)


def shift(u, s: float):
  """Eq. (8): warps a level in [0, 1]; fixed points 0 and 1."""
  return s * u / (1 + (s - 1) * u)


def unshift(sigma, s: float):
  """Inverse of `shift`, Eq. (9)."""
  return sigma / (s - (s - 1) * sigma)


def sigma_table(num_steps: int, *, s: float) -> Float[np.ndarray, "n"]:
  """Descending levels S(1 - i/n), i = 0..n-1, float64; 0 is not an entry."""
  return shift(1 - np.arange(num_steps) / num_steps, s)


def few_step_sigmas(
  steps: tuple[int, ...], *, s: float
) -> Float[np.ndarray, "n"]:
  """Warps a list such as (1000, 750, 500, 250), Eq. (15)."""
  return shift(np.asarray(steps, np.float64) / wan_config.MAX_TIMESTEP, s)


def training_weight(sigma: Array, *, s: float = 5.0) -> Array:
  """Bell-shaped loss weight of stage 1, Eq. (14) in closed form.

  Zero at σ = 1, largest at σ = 0.5. The constant makes the mean 1 over the
  1000-entry table of shift `s`.
  """
  lowest = math.exp(-0.5)

  def bell(level, exp):
    return exp(-2 * (level - 0.5) ** 2) - lowest

  mean = bell(sigma_table(1000, s=s), np.exp).mean()
  return bell(sigma, jnp.exp) / mean
