"""Configs of single parts: folders, steps, and what a timing leaves out."""

import pathlib

import pytest

from tests import tiny_project
from videomla_jax.autoencoding import settings as vae_settings
from videomla_jax.chain import parts
from videomla_jax.chain import settings
from videomla_jax.runtime import config_reader
from videomla_jax.training.stages import table

ROOT = pathlib.Path("somewhere")
VAE = ROOT / "vae" / "model"


def _config(name: str):
  return settings.read(tiny_project.config("world", "all"))[1][name]


def _read(name: str, config) -> object:
  if name == "vae":
    return config_reader.read(vae_settings.Settings, config)
  return table.read(config)[1]


@pytest.mark.parametrize("name", settings.PARTS)
@pytest.mark.parametrize("dispatch", [1, 10])
@pytest.mark.parametrize("steps", [4, 137, 5000])
def test_every_number_of_steps_makes_a_config(name, dispatch, steps) -> None:
  config = parts.placed(_config(name), name, ROOT, vae=VAE)
  config = parts.with_steps(config, name, steps, dispatch=dispatch)
  read = _read(name, config)
  assert steps <= read.optim.steps < steps + dispatch
  assert read.optim.warmup_steps < read.optim.steps
  every = config.every if name == "vae" else config.log
  assert config.optim.steps % dispatch == 0
  log = every.log if name == "vae" else every.every
  assert log % dispatch == 0


@pytest.mark.parametrize("name", settings.PARTS[1:])
def test_a_part_starts_where_the_one_before_ends(name) -> None:
  config = parts.placed(_config(name), name, ROOT, vae=VAE)
  assert config.data.vae == str(VAE)
  before = {
    "images": "",
    "pretraining": str(parts.model(ROOT, "images")),
    "teacher_forcing": str(ROOT / parts.CONVERTED),
    "consistency": str(parts.model(ROOT, "teacher_forcing")),
    "dmd": str(parts.model(ROOT, "consistency")),
  }
  assert config.networks.model == before[name]


def test_the_given_config_stays_as_it_is() -> None:
  config = _config("dmd")
  before = config.to_json()
  placed = parts.placed(config, "dmd", ROOT, vae=VAE)
  parts.for_timing(placed, "dmd", 8, dispatch=2)
  assert config.to_json() == before


@pytest.mark.parametrize("name", settings.PARTS)
def test_a_timing_makes_no_samples_and_logs_steps_without_compiling(
  name,
) -> None:
  config = parts.placed(_config(name), name, ROOT, vae=VAE)
  config = parts.for_timing(config, name, 8, dispatch=5)
  read = _read(name, config)
  assert read.optim.steps == 40
  if name == "vae":
    # Two kinds of steps: the second line of each has compiled nothing.
    assert (read.images.steps, read.every.log) == (20, 10)
    assert [10, 20, 30, 40][parts.timed_lines(name)] == [20, 40]
  else:
    assert (read.samples.videos, read.eval.batches) == (0, 0)
    assert [20, 40][parts.timed_lines(name)] == [40]
