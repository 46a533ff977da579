"""Samplers that cannot work are refused with the way out."""

import jax
import jax.numpy as jnp
import pytest

from tests import tolerances
from videomla_jax.diffusion import sampling


@pytest.mark.parametrize(
  "sigmas", [(), (0.5, 0.7), (1.2, 0.5), (1.0, 0.5, 0.5), (1.0, 0.0), (-0.1,)]
)
def test_sampler_refuses_levels_that_do_not_descend(sigmas):
  with pytest.raises(ValueError, match="must descend from at most 1"):
    sampling.Sampler(sigmas=sigmas, rule="renoise")


def test_sampler_refuses_no_step():
  with pytest.raises(ValueError, match="num_steps=0 must be at least 1"):
    sampling.euler(0, shift=5.0, guidance=None)


def test_sampler_refuses_an_unknown_rule():
  with pytest.raises(ValueError, match="rule='heun' is unknown; use one of"):
    sampling.Sampler(sigmas=(1.0,), rule="heun")


def test_sampler_refuses_an_unknown_commit():
  with pytest.raises(ValueError, match="commit='none' is unknown; use one of"):
    sampling.Sampler(sigmas=(1.0,), rule="renoise", commit="none")


def test_a_student_of_one_step_jumps_from_noise_to_x0(seed):
  sampler = sampling.few_step((1000,))
  keys = sampling.split_keys(jax.random.key(seed), 2)
  noise = sampling.chunk_noise(
    keys, jnp.asarray(0), shape=(3, 2, 2, 4), sampler=sampler
  )
  found = sampling.solve(lambda x, sigma: 0.25 * x, noise, sampler=sampler)
  tolerances.assert_close(found, 0.75 * noise.start)
