"""A pass and a chunk of a whole network with interpreted kernels."""

import dataclasses
from unittest import mock

import pytest

from tests import pass_errors
from tests import tolerances
from videomla_jax.ops.latent_attention import library_tpu
from videomla_jax.ops.latent_attention import pallas_triton

# A network of one layer compiles sooner.
_CASE = pass_errors.CASES["tiny"]
_CASE = _CASE._replace(config=dataclasses.replace(_CASE.config, num_layers=1))
_BOUND = tolerances.TOLERANCES["bfloat16_step"].bound


@pytest.fixture(scope="module")
def expected():
  return pass_errors.truth(_CASE)


@pytest.mark.parametrize(
  ("name", "form", "module", "kernel"),
  [
    ("pallas_triton", "absorbed", pallas_triton, "flash"),
    ("tpu_flash", "expanded", library_tpu, "latent_attention"),
  ],
  ids=["pallas_triton", "tpu_flash"],
)
def test_interpreted_kernels_stay_near_float32(
  expected, name, form, module, kernel
):
  spied = mock.patch.object(module, kernel, wraps=getattr(module, kernel))
  with spied as spy:
    found = pass_errors.measure(_CASE, name, form, expected)
  print(found)
  assert spy.called
  assert set(found) == {"velocity", "latents"}
  assert 0 < min(found.values())
  assert max(found.values()) <= _BOUND
