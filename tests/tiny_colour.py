"""Models of the colour world and VAEs for it, with tiny random networks."""

import functools
import pathlib

from flax import nnx
import jax
import numpy as np
import pytest

from tests import tiny_project
from videomla_jax.models import released
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.models import wan_config
from videomla_jax.small_world import codecs
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import worlds


def shrink(patch: pytest.MonkeyPatch) -> None:
  """Makes "world" smaller: one block of a sixth of the width."""
  sizes = functools.partial(
    wan_config.world, num_layers=1, width=32, ffn_width=32, text_dim=8
  )
  patch.setitem(wan_config.SIZES, "world", sizes)


def write_vae(
  path: pathlib.Path, seed: int = 0, **changes: object
) -> pathlib.Path:
  """Writes a VAE of two channels at full resolution, and returns its folder."""
  values = dict(width=2, multipliers=(1, 1, 1, 1), num_blocks=1)
  config = vae_coders.wan_vae(**(values | changes))
  make = jax.jit(lambda: vae.WanVAE(config, rngs=nnx.Rngs(seed)))
  released.save(path, make())
  return path


def video_config(kind: str) -> model_lib.VideoModelConfig:
  """Returns the config of a model of the colour world."""
  world = worlds.WORLDS[worlds.COLOUR_WORLD]
  return model_lib.VideoModelConfig(
    size="world",
    kind=kind,
    world=worlds.COLOUR_WORLD,
    vocabulary=world.vocabulary,
    latent_height=world.latent_shape[0],
    latent_width=world.latent_shape[1],
    fps=world.fps,
    shift=2.5,
    window=tiny_project.WINDOW,
  )


def video(kind: str, folder: pathlib.Path, seed: int) -> model_lib.VideoModel:
  """Returns a model with random weights and the VAE of a folder."""
  config, codec = video_config(kind), codecs.open_vae(folder)
  model = jax.jit(
    lambda: model_lib.VideoModel(config, rngs=nnx.Rngs(seed), codec=codec)
  )()
  # What is drawn as zeros would hide the text.
  rng = np.random.default_rng(seed)
  fill = lambda x: x + 0.02 * rng.standard_normal(x.shape).astype(x.dtype)
  return jax.tree.map(fill, model)
