"""Rectified flow: conversions and schedules, docs/method.md, section 6."""

import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.diffusion import flow

SIGMAS = pytest.mark.parametrize("sigma", [1.0, 0.9375, 0.8333333, 0.625, 0.02])
LEVELS = st.floats(0, 1)
SHIFTS = st.floats(0.1, 20)


def _latents(seed, count=2):
  rng = np.random.default_rng(seed)
  return [tiny_model.normal(rng, 2, 3, 4, 2, 2) for _ in range(count)]


def _level(sigma):
  return jnp.full((2, 3), sigma, jnp.float32)


@SIGMAS
def test_x0_noise_and_velocity_convert_back(seed, sigma):
  x0, noise = _latents(seed)
  level = _level(sigma)
  x = flow.add_noise(x0, noise, level)
  velocity = flow.velocity_target(x0, noise)
  for result, expected in (
    (flow.x0_from_velocity(x, velocity, level), x0),
    (flow.noise_from_velocity(x, velocity, level), noise),
  ):
    np.testing.assert_allclose(result, expected, atol=2e-6)
  again = flow.velocity_from_x0(x, x0, level)
  np.testing.assert_allclose(again, velocity, atol=1e-6 / sigma)


@SIGMAS
def test_one_euler_step_reaches_a_point_mass_from_any_level(seed, sigma):
  point, x = _latents(seed)
  level = _level(sigma)
  velocity = flow.velocity_from_x0(x, point, level)
  end = flow.euler_step(x, velocity, level, _level(0.0))
  np.testing.assert_allclose(end, point, atol=2e-6)


def test_euler_steps_along_a_straight_line_are_exact(seed):
  x0, noise = _latents(seed)
  velocity = flow.velocity_target(x0, noise)
  levels = [*flow.sigma_table(7, s=5.0), 0.0]
  x = noise
  for sigma, next_sigma in zip(levels, levels[1:]):
    x = flow.euler_step(x, velocity, _level(sigma), _level(next_sigma))
  tolerances.assert_close(x, x0)


def test_noise_levels_of_frames_are_independent(seed):
  x0, noise = _latents(seed)
  sigma = jnp.asarray(np.random.default_rng(seed).random((2, 3)), jnp.float32)
  whole = flow.add_noise(x0, noise, sigma)
  for frame in range(3):
    one = slice(frame, frame + 1)
    alone = flow.add_noise(x0[:, one], noise[:, one], sigma[:, one])
    np.testing.assert_array_equal(whole[:, one], alone)


def test_guidance_on_x0_equals_guidance_on_velocity(seed):
  x, cond, uncond = _latents(seed, 3)
  level = _level(0.625)
  x_cond, x_uncond = (
    flow.x0_from_velocity(x, v, level) for v in (cond, uncond)
  )
  on_velocity = flow.x0_from_velocity(x, flow.guide(cond, uncond, 4.0), level)
  tolerances.assert_close(x_cond + 3 * (x_cond - x_uncond), on_velocity)


@hypothesis.given(LEVELS, SHIFTS)
def test_unshift_inverts_shift(u, s):
  assert flow.unshift(flow.shift(u, s), s) == pytest.approx(u, abs=1e-9)
  assert flow.shift(flow.unshift(u, s), s) == pytest.approx(u, abs=1e-9)


@hypothesis.given(LEVELS, LEVELS, SHIFTS)
def test_shift_is_monotone_within_the_unit_interval(u, v, s):
  low, high = sorted((flow.shift(u, s), flow.shift(v, s)))
  assert 0 <= low <= high <= 1 + 1e-12
  assert (flow.shift(min(u, v), s)) == low


def test_shift_vectors():
  for u, expected in ((0.25, 0.625), (0.5, 5 / 6), (0.02, 0.0925926), (1.0, 1)):
    assert flow.shift(u, 5.0) == pytest.approx(expected, abs=1e-7)
  assert flow.shift(0.0, 5.0) == 0.0


def test_few_step_list_is_warped_to_exact_levels():
  steps = flow.few_step_sigmas((1000, 750, 500, 250), s=5.0) * 1000
  np.testing.assert_allclose(steps, [1000, 937.5, 2500 / 3, 625], rtol=1e-12)
  # Half precision would have given 936, 832 and 624.
  np.testing.assert_array_equal(steps.astype(np.float32)[[1, 3]], [937.5, 625])


def test_table_of_48_levels():
  table = 1000 * flow.sigma_table(48, s=5.0)
  np.testing.assert_allclose(
    table[[0, 1, 20, 24, 36, 40, 45, 46, 47]],
    [1000, 995.76, 875, 833.33, 625, 500, 250, 178.57, 96.1538],
    atol=6e-3,
  )
  assert len(table) == 48
  assert (np.diff(table) < 0).all()
  # Entries 0, 12, 24 and 36 are the four warped steps.
  few = 1000 * flow.few_step_sigmas((1000, 750, 500, 250), s=5.0)
  np.testing.assert_allclose(table[::12], few)


def test_table_of_1000_levels():
  table = 1000 * flow.sigma_table(1000, s=5.0)
  np.testing.assert_allclose(
    table[[0, 1, 250, 500, 750, 997, 998, 999]],
    [1000, 999.7998, 937.5, 833.33, 625, 14.822, 9.9206, 4.9801],
    atol=4e-3,
  )


def test_training_weights_match_the_closed_form():
  timesteps = [1000, 980, 937.5, 900, 833.3, 750, 625, 500, 400, 300, 200, 100]
  expected = [0, 0.128, 0.398, 0.631, 1.025, 1.456, 1.914, 2.076, 1.972, 1.671]
  timesteps += [50, 20, 5]
  expected += [1.207, 0.631, 0.319, 0.128, 0.032]
  sigma = jnp.asarray(timesteps, jnp.float32) / 1000
  np.testing.assert_allclose(flow.training_weight(sigma), expected, atol=6e-4)


def test_training_weights_have_mean_one_over_the_table():
  sigma = jnp.asarray(flow.sigma_table(1000, s=5.0), jnp.float32)
  assert float(flow.training_weight(sigma).mean()) == pytest.approx(1, abs=1e-5)
