"""Configs and checkpoints so small that an entry point runs in seconds."""

import functools
import importlib.util
import pathlib
from typing import Any

from flax import nnx
import numpy as np
import pytest

from tests import tiny_model
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.runtime import config_files
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import prompts

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
WINDOW = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=6)


def config(name: str, arg: str | None = None) -> Any:
  """Returns the locked config of `configs/NAME.py:arg`, as flags give it."""
  path = CONFIGS / f"{name}.py"
  spec = importlib.util.spec_from_file_location(f"{name}_config", path)
  module = importlib.util.module_from_spec(spec)
  with config_files.importing_from(CONFIGS):
    spec.loader.exec_module(module)
  return module.get_config(arg).lock()


def without_samples(config: Any) -> None:
  """Unsets what makes videos on the way."""
  config.samples.videos = 0
  for name in ("every", "seconds", "num_steps", "guidance"):
    config.samples[name] = None


def shrink(patch: pytest.MonkeyPatch) -> None:
  """Makes "small" smaller still: one block, a quarter of the width."""
  sizes = functools.partial(wan_config.small, num_layers=1, ffn_width=32)
  patch.setitem(wan_config.SIZES, "small", sizes)


def video_config(kind: str) -> model_lib.VideoModelConfig:
  """Returns the config of a small video model."""
  return model_lib.VideoModelConfig(
    size="small",
    kind=kind,
    vocabulary=prompts.vocabulary_size(),
    latent_height=6,
    latent_width=6,
    fps=4.0,
    shift=2.0,
    window=WINDOW,
  )


def video(kind: str, rng: np.random.Generator) -> model_lib.VideoModel:
  """Returns a video model with random weights."""
  config = video_config(kind)
  model = nnx.eval_shape(lambda: model_lib.VideoModel(config, rngs=nnx.Rngs(0)))
  return tiny_model.fill(model, rng)


def checkpoint(
  path: pathlib.Path, rng: np.random.Generator, *, kind: str = "latent"
) -> model_lib.VideoModel:
  """Saves a video model with random weights, and returns it."""
  model = video(kind, rng)
  model_lib.save(path, model)
  return model
