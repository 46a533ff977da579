"""Samplers that cannot work are refused with the way out."""

import pytest

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
