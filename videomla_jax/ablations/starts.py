"""The weights that a model of an ablation has before its first step."""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from videomla_jax.conversion import calibration
from videomla_jax.conversion import latent_layer
from videomla_jax.conversion import moments
from videomla_jax.conversion import to_latent
from videomla_jax.diffusion import flow
from videomla_jax.small_world import codecs
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import traced_world
from videomla_jax.training import networks
from videomla_jax.training import settings as settings_lib

_CLIPS = 32  # whose activations calibrate: 3,456 tokens, 27 times the width

Start = Callable[[settings_lib.Training, str], model_lib.VideoModel]


def _scratch(
  settings: settings_lib.Training, dense: str
) -> model_lib.VideoModel:
  """Draws all weights from the seed."""
  del dense
  return networks.build(settings)


def _dense(settings: settings_lib.Training, dense: str) -> model_lib.VideoModel:
  """Takes the dense model as it is."""
  del settings
  return model_lib.load(dense)


def _converted(
  settings: settings_lib.Training,
  dense: str,
  *,
  method: latent_layer.Method,
  calibrated: bool = False,
) -> model_lib.VideoModel:
  """Converts the dense model; random parameters come from the seed."""
  model = model_lib.load(dense)
  network = dataclasses.replace(
    model.config,
    kind="latent",
    d_c=settings.model.d_c or None,
    d_rope=settings.model.d_rope or None,
  ).network
  sizes = network.attention
  recipe = to_latent.Recipe(
    method=method,
    d_c=sizes.d_c,
    d_rope=sizes.d_rope,
    d_q=sizes.d_q,
    seed=settings.seed,
  )
  tokens = _tokens(model, settings) if calibrated else None
  return to_latent.small_to_latent(model, recipe, tokens=tokens)[0]


def _tokens(
  model: model_lib.VideoModel, settings: settings_lib.Training
) -> list[moments.Tokens]:
  """Collects what the layers see on clips at levels over the whole range."""
  key_clips, key_noise = jax.random.split(jax.random.key(settings.seed))
  batch = traced_world.batch(
    key_clips, size=_CLIPS, num_frames=settings.data.num_frames
  )
  clean = codecs.PixelCodec().encode(batch["video"])
  # Levels lie in the middle of equal parts: 0 and 1 are none of them.
  levels = (np.arange(_CLIPS) + 0.5) / _CLIPS
  sigma = jnp.asarray(flow.shift(levels, settings.diffusion.shift), jnp.float32)
  noise = jax.random.normal(key_noise, clean.shape)
  noisy = flow.add_noise(clean, noise, sigma[:, None])
  text = model.encode_text(batch["tokens"])
  return calibration.collect(model.dit, noisy, sigma, text, seed=settings.seed)


# Settings name a row.
STARTS: dict[str, Start] = {
  "scratch": _scratch,
  "dense": _dense,
  "random": functools.partial(_converted, method="random"),
  "spectral": functools.partial(_converted, method="spectral"),
  "calibrated": functools.partial(
    _converted, method="spectral", calibrated=True
  ),
}

_WORDS = {
  "scratch": "random weights, of the seed",
  "dense": "{}, as it is",
  "random": "{}, attention at random but for W_o",
  "spectral": "{}, spectral conversion",
  "calibrated": "{}, spectral conversion with real inputs",
}


def described(start: str, dense: str) -> str:
  """Says a start in words, as a row has it.

  Args:
    start: Name in `STARTS`.
    dense: The dense model that is converted.
  """
  return _WORDS[start].format(dense)


def make(
  start: str, settings: settings_lib.Training, *, dense: str
) -> model_lib.VideoModel:
  """Returns a model as the first stage trains it.

  Args:
    start: Name in `STARTS`.
    settings: Settings of the stage, with the seed of the row.
    dense: Dense model that is converted: a folder, or `shipped:NAME`.

  Raises:
    ValueError: If the dense model is missing or another one.
  """
  return prepared(STARTS[start](settings, dense), settings)


def prepared(
  model: model_lib.VideoModel, settings: settings_lib.Training
) -> model_lib.VideoModel:
  """Returns a model as a stage trains it, with its window and schedule.

  Args:
    model: The model.
    settings: Settings of the stage.

  Raises:
    ValueError: If the model is not of the kind that the settings ask for.
  """
  prepared = networks.prepare(model, settings)
  assert isinstance(prepared, model_lib.VideoModel)  # as the model is
  return scanned(prepared)


def scanned(model: model_lib.VideoModel) -> model_lib.VideoModel:
  """Lets one block serve all layers, and returns the model.

  There are many programs, each runs for minutes, and unrolled ones take twice
  as long to compile.

  Args:
    model: A model that nobody else has.
  """
  model.dit.config = dataclasses.replace(model.dit.config, scan_blocks=True)
  return model
