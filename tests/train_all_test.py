"""The whole way in one command: a VAE, all stages, one folder at the end."""

import pathlib
from typing import Any

import numpy as np
import pytest

from tests import tiny_colour
from tests import tiny_project
import videomla_jax
from videomla_jax import train
from videomla_jax.chain import progress
from videomla_jax.chain import settings


def _config() -> Any:
  config = tiny_project.config("world", "all,minutes=0.02,runlocal,videos=0")
  config.unlock()
  config.probe = 4
  config.vae.network.update(width=2)
  for name in settings.PARTS[1:]:
    config[name].data.num_clips = 8
  return config.lock()


@pytest.mark.slow
def test_one_command_makes_a_student_that_samples(
  tmp_path, monkeypatch
) -> None:
  tiny_colour.shrink(monkeypatch)
  train.train(_config(), str(tmp_path))
  assert set(progress.read(tmp_path).steps) == set(settings.PARTS)
  model = videomla_jax.load(tmp_path / "model")
  video = videomla_jax.generate(
    model, "on a plain navy background, a slow red 3 moves left", seconds=1
  )
  assert video.pixels.shape == (1, 16, 64, 64, 3)
  files = [p for p in (tmp_path / "model").rglob("*") if p.is_file()]
  assert max(p.stat().st_size for p in files) < 16 * 2**20
  # What is finished is not trained again.
  before = (tmp_path / "chain.json").read_bytes()
  train.train(_config(), str(tmp_path))
  assert (tmp_path / "chain.json").read_bytes() == before
  assert np.isfinite(video.pixels).all()


def test_a_part_with_an_unknown_field_is_refused_at_once(
  tmp_path: pathlib.Path,
) -> None:
  config = _config()
  config.unlock()
  config.dmd.optim.rate = 1.0
  with pytest.raises(ValueError, match="rate"):
    train.train(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("made", [False, True])
def test_a_finished_vae_that_does_not_fit_is_refused_at_once(
  tmp_path: pathlib.Path, made: bool
) -> None:
  vae = tmp_path / "vae"
  if made:
    tiny_colour.write_vae(vae, channels=4, mean=(0.0,) * 4, std=(1.0,) * 4)
  config = tiny_project.config("world", f"all,runlocal,vae={vae}")
  message = "4 channels" if made else "is not a directory"
  with pytest.raises(ValueError, match=message):
    train.train(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_steps_of_all_parts_cannot_be_traced(tmp_path: pathlib.Path) -> None:
  with pytest.raises(ValueError, match="--profile"):
    train.train(_config(), str(tmp_path), "2:4")
