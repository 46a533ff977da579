"""Tests of calibration: real clips improve a conversion, and mistakes."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from tests import tiny_project
from tests import tiny_release
from videomla_jax import calibrate
from videomla_jax import convert
from videomla_jax.conversion import release as release_lib
from videomla_jax.generation import mp4

_PROMPTS = "; ".join(tiny_release.PROMPTS)


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> pathlib.Path:
  """A converted release, dense, and its latent twin beside it."""
  folder = tmp_path_factory.mktemp("release")
  tiny_release.write_converted(folder, np.random.default_rng())
  return folder


@pytest.fixture
def config(release: pathlib.Path, tmp_path: pathlib.Path, seed: int) -> Any:
  """Two clips of two latent frames of six tokens each, at four levels."""
  rng = np.random.default_rng(seed)
  clips = []
  for i in range(2):
    frames = rng.integers(0, 256, (7, 4, 6, 3), dtype=np.uint8)
    frames = frames.repeat(8, axis=1).repeat(8, axis=2)
    clips.append(str(tmp_path / f"{i}.mp4"))
    mp4.write_mp4(clips[-1], frames, fps=16, scale=1)
  config = tiny_project.config("calibrate")
  config.checkpoint = str(release / "wan")
  config.clips, config.prompts = "; ".join(clips), _PROMPTS
  config.height, config.width, config.num_frames = 32, 48, 5
  config.max_tokens = 80
  config.output = str(tmp_path / "tokens.safetensors")
  return config


def test_activations_of_real_clips_improve_a_conversion(
  config: Any, release: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  assert calibrate.calibrate(config)["tokens"] == 80
  convert.convert(
    tiny_release.options(
      source=str(release / "wan" / "dit"),
      output=str(tmp_path / "latent"),
      to="latent",
      activations=config.output,
    )
  )
  text = (tmp_path / "latent" / release_lib.REPORT).read_text()
  assert text.count("activation-aware") == tiny_release.DIT.num_layers
  config.compare = str(tmp_path / "latent")
  config.output = str(tmp_path / "errors.json")
  fitted = calibrate.calibrate(config)["output_error"]
  config.compare = str(release / "videomla" / "dit")
  plain = calibrate.calibrate(config)["output_error"]
  stored = json.loads((tmp_path / "errors.json").read_text())
  assert stored["output_error"] == plain
  assert len(plain) == tiny_release.DIT.num_layers
  assert np.mean(fitted) < np.mean(plain)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(prompts="one"), "clips are 2 and prompts 1"),
    (dict(checkpoint="videomla"), "has latent attention"),
    (dict(levels=0), "levels=0 must be at least 1"),
    (dict(decoder="tiny"), "decoder='tiny' has no effect here"),
    (dict(layers_apart=True), "layers_apart=True has no effect here"),
    (dict(clips="a.mp4; b.mp4"), "give an MP4"),
    (dict(prompts="a;;b", clips="a;b;c"), r"prompts\[1\] is empty"),
  ],
)
def test_mistakes_are_found_before_anything_is_collected(
  config: Any, release: pathlib.Path, changes: dict[str, Any], said: str
) -> None:
  config.unlock()
  config.update(changes)
  if "checkpoint" in changes:
    config.checkpoint = str(release / config.checkpoint)
  with pytest.raises(ValueError, match=said):
    calibrate.calibrate(config)
  assert not pathlib.Path(config.output).exists()
