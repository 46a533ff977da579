"""Slices of TPUs that programs are compiled for."""

import math

import pytest

from videomla_jax.costs import aot
from videomla_jax.costs import tpus


@pytest.mark.parametrize("name", tpus.TARGETS)
def test_a_slice_has_as_many_chips_as_it_says(name):
  target = tpus.TARGETS[name]
  for chips, arrangement in target.slices.items():
    assert math.prod(map(int, arrangement.split("x"))) == chips
  assert target.peak.bf16_flops > 1e14


def test_a_slice_that_nobody_builds_is_refused_before_anything_loads():
  with pytest.raises(ValueError, match=r"no slice of 24 chips; use one of \[1"):
    aot.mesh("v5e", (24,))
  with pytest.raises(ValueError, match=r"'v9' is unknown; use one of \['b200'"):
    aot.mesh("v9")
