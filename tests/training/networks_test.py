"""Tests of the networks that a stage loads."""

import dataclasses
import pathlib

import numpy as np
import pytest

from tests import tiny_model
from tests import tiny_project
from videomla_jax.models import released
from videomla_jax.training import networks
from videomla_jax.training.stages import table


def test_weights_in_float8_are_not_trained(
  tmp_path: pathlib.Path, seed: int
) -> None:
  model = tiny_model.build("latent", np.random.default_rng(seed))
  released.save(tmp_path / "exact", model)
  float8 = released.with_products(model, "float8_per_token")
  released.save(tmp_path / "float8", float8)
  config = tiny_project.config("teacher_forcing", "wan_1p3b")
  _, settings = table.read(config.to_dict())
  settings = dataclasses.replace(settings, network={})
  networks.load(tmp_path / "exact", settings)
  with pytest.raises(ValueError, match="'float8_per_token', but float8 is for"):
    networks.load(tmp_path / "float8", settings)
  changed = dict(products="float8_per_token")
  settings = dataclasses.replace(settings, network=changed)
  with pytest.raises(ValueError, match="network has products='float8_per_t"):
    networks.load(tmp_path / "exact", settings)
