"""Schedules and conversions against the original flow-matching scheduler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from tests.parity import goldens
from videomla_jax.diffusion import flow
from videomla_jax.models import wan_config

_TABLES = {
  "n1000_s5": (1000, 5.0),
  "n1000_s8": (1000, 8.0),
  "n48_s5": (48, 5.0),
}


def _golden(name: str) -> jax.Array:
  return jnp.asarray(goldens.load("flow_tables")[name])


def _latents(name: str) -> jax.Array:
  return goldens.channels_last(goldens.load("flow_tables")[name])


def _matches(ours, golden: np.ndarray, kind: str = "golden") -> None:
  tolerances.assert_close(ours, golden, kind)


@pytest.mark.parametrize("table", _TABLES)
def test_table_equals_the_original(table: str) -> None:
  steps, s = _TABLES[table]
  sigmas = flow.sigma_table(steps, s=s)
  times = sigmas * wan_config.MAX_TIMESTEP
  _matches(sigmas, _golden(f"{table}/sigmas"), "golden_table")
  _matches(times, _golden(f"{table}/timesteps"), "golden_table")


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps_equal_the_original(steps: int) -> None:
  raw = tuple(int(t) for t in _golden(f"warped/steps{steps}_raw"))
  sigmas = flow.few_step_sigmas(raw, s=5.0)
  times = sigmas * wan_config.MAX_TIMESTEP
  _matches(times, _golden(f"warped/steps{steps}"), "golden_table")


@pytest.mark.parametrize("table", [*_TABLES, "exact"])
def test_noising_and_x0_equal_the_original(table: str) -> None:
  # Tables are searched by the original; given its entry, the formulas agree.
  exact = table == "exact"
  sigma = _golden("ex/t" if exact else f"ex/{table}/sigma")
  sigma = sigma / np.float32(wan_config.MAX_TIMESTEP) if exact else sigma
  x = flow.add_noise(_latents("ex/x0"), _latents("ex/eps"), sigma)
  _matches(x, _latents(f"ex/{table}/x_t"), "golden_noised")
  x0 = flow.x0_from_velocity(x, _latents("ex/v"), sigma)
  _matches(x0, _latents(f"ex/{table}/x0_from_v"), "golden_x0")


@pytest.mark.parametrize("table", _TABLES)
def test_velocity_from_x0_equals_the_original(table: str) -> None:
  sigma = _golden(f"ex/{table}/sigma")
  x, x0 = _latents(f"ex/{table}/x_t"), _latents(f"ex/{table}/x0_from_v")
  v = flow.velocity_from_x0(x, x0, sigma)
  # Float32 rounding of x is divided by levels down to 0.005.
  bound = 5e-5
  assert np.abs(v - _latents(f"ex/{table}/v_from_x0")).max() <= bound


def test_training_weight_equals_the_originals_table() -> None:
  sigma = jnp.asarray(_golden("n1000_s5/sigmas"))
  _matches(flow.training_weight(sigma), _golden("n1000_s5/weights"))
  sigma = jnp.asarray(_golden("ex/n1000_s5/sigma"))
  _matches(flow.training_weight(sigma), _golden("ex/n1000_s5/weight"))


def test_euler_steps_equal_the_original() -> None:
  levels = [*flow.sigma_table(48, s=5.0), 0.0]

  def step(t):
    i = [int(np.argmin(np.abs(np.multiply(levels, 1000) - x))) for x in t]
    following = jnp.asarray([levels[k + 1] for k in i], jnp.float32)
    x, v = (_latents(f"euler/{name}")[:, None] for name in "xv")
    sigma = t[:, None] / np.float32(wan_config.MAX_TIMESTEP)
    return flow.euler_step(x, v, sigma, following[:, None])[:, 0]

  _matches(step(_golden("euler/t")), _latents("euler/x_next"))
  _matches(step(_golden("euler/last_t")), _latents("euler/last_x_next"))


def test_guidance_equals_both_conventions() -> None:
  given = _golden("cfg/v_cond"), _golden("cfg/v_uncond")
  _matches(flow.guide(*given, 3.0), _golden("cfg/velocity_w3"))
  # The DMD code adds g = 3 differences to the conditional: our w = g + 1.
  _matches(flow.guide(*given, 4.0), _golden("cfg/dmd_g3"))
