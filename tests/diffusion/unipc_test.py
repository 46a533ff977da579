"""Tests of UniPC against flows whose solution is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from videomla_jax.diffusion import sampling
from videomla_jax.diffusion import unipc

_SHAPE = (2, 3, 4, 2, 5)


def _solve(sampler: sampling.Sampler, noise: jax.Array, velocity_of):
  gaussian = sampling.Noise(noise, jnp.zeros((0, *noise.shape)))
  return sampling.solve(velocity_of, gaussian, sampler=sampler)


def _gaussian_data(mean: float, std: float):
  """Velocity of data N(mean, std^2) and the end of the flow from the noise."""

  def velocity(x, sigma):
    spread = (1 - sigma) ** 2 * std**2 + sigma**2
    slope = (sigma - (1 - sigma) * std**2) / spread
    return slope * (x - (1 - sigma) * mean) - mean

  def end(noise, sigma):
    spread = np.sqrt((1 - sigma) ** 2 * std**2 + sigma**2)
    return mean + std * (noise - (1 - sigma) * mean) / spread

  return velocity, end


def _error(name: str, steps: int, noise: jax.Array) -> float:
  make = {"unipc": sampling.unipc, "euler": sampling.euler}[name]
  sampler = make(steps, shift=3.0, guidance=None)
  velocity, end = _gaussian_data(0.7, 0.4)
  exact = end(np.asarray(noise, np.float64), sampler.sigmas[0])
  return tolerances.relative_error(_solve(sampler, noise, velocity), exact)


def test_error_falls_with_the_square_of_the_steps(seed: int) -> None:
  rng = np.random.default_rng(seed)
  noise = jnp.asarray(rng.standard_normal(_SHAPE), jnp.float32)
  coarse, fine = (_error("unipc", n, noise) for n in (10, 20))
  assert fine < coarse / 3
  assert fine < _error("euler", 20, noise) / 2


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_constant_prediction_is_reached_exactly(steps: int, seed: int) -> None:
  rng = np.random.default_rng(seed)
  noise, x0 = (
    jnp.asarray(rng.standard_normal(_SHAPE), jnp.float32) for _ in range(2)
  )
  sampler = sampling.unipc(steps, shift=5.0, guidance=None)
  out = _solve(sampler, noise, lambda x, sigma: (x - x0) / sigma)
  tolerances.assert_close(out, x0, "float32")


def test_weights_keep_a_point_of_the_flow(seed: int) -> None:
  # With one x0 everywhere, sums of weights must move (1 - s) x0 + s e exactly.
  rng = np.random.default_rng(seed)
  sigmas = tuple(np.sort(rng.uniform(0.01, 0.99, 6))[::-1].tolist())
  rows = unipc.weights(sigmas)
  for i, (s, t) in enumerate(zip(sigmas, (*sigmas[1:], 0.0), strict=True)):
    decay, *rest = rows.predict[i]
    np.testing.assert_allclose(decay, t / s, atol=1e-12)
    np.testing.assert_allclose(decay * (1 - s) + sum(rest), 1 - t, atol=1e-12)
    if i:
      decay, *rest = rows.correct[i]
      before = sigmas[i - 1]
      total = decay * (1 - before) + sum(rest)
      np.testing.assert_allclose(total, 1 - s, atol=1e-12)


def test_levels_of_one_are_refused() -> None:
  with pytest.raises(ValueError, match="below 1 for UniPC"):
    sampling.Sampler(sigmas=(1.0, 0.5), rule="unipc")
