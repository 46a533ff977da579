"""Stage 1: a causal model that sees clean history.

Every chunk of a clip is denoised at a level of its own against the clean chunks
before it, as the rollout will see them: `diffusion.teacher_forcing`, which
follows docs/method.md, section 10.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from videomla_jax.diffusion import flow
from videomla_jax.diffusion import teacher_forcing
from videomla_jax.training import inputs
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import regression
from videomla_jax.training.stages import stage

_WEIGHTS = ("none", "bell")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(settings_lib.Diffusion):
  """Group `diffusion` of this stage.

  Attributes:
    loss_weight: "none", or "bell" for Wan's weight of middle levels.
    first_frame_every: N, if the first chunk is a single given frame in every
      N-th step; 0 for never.
  """

  loss_weight: str
  first_frame_every: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(settings_lib.Training):
  """The whole config of this stage."""

  diffusion: Diffusion


def check(settings: Settings) -> None:
  """Refuses configs of this stage that cannot be trained.

  Args:
    settings: Settings of the stage.

  Raises:
    ValueError: If a clip is not made of whole chunks, or the weight is unknown.
  """
  teacher_forcing.plan(settings.data.num_frames, window=settings.window)
  if settings.diffusion.loss_weight not in _WEIGHTS:
    raise ValueError(
      f"diffusion.loss_weight={settings.diffusion.loss_weight!r} is unknown; "
      "use 'none' or 'bell'."
    )


def loss(
  arguments: regression.LossArguments, settings: Settings
) -> regression.Losses:
  """Returns the loss of clips whose chunks have random levels, Eq. (10.2).

  Args:
    arguments: Model, batch, key and length of the first chunk.
    settings: Settings of the stage.
  """
  window, s = settings.window, settings.diffusion.shift
  clean = inputs.latents(arguments.model, arguments.batch)
  key_noise, key_sigma = jax.random.split(arguments.key)
  sigma = teacher_forcing.sample_sigma(
    key_sigma,
    batch=clean.shape[0],
    chunks=clean.shape[1] // window.chunk_frames,
    chunk_frames=window.chunk_frames,
    s=s,
  )
  weight = None  # every level counts alike
  if settings.diffusion.loss_weight == "bell":
    weight = flow.training_weight(sigma, s=s)
  return teacher_forcing.loss(
    inputs.dit(arguments.model),
    clean,
    jax.random.normal(key_noise, clean.shape, jnp.float32),
    sigma,
    inputs.text(arguments.model, arguments.batch),
    window=window,
    first_chunk=arguments.first_chunk,
    weight=weight,
  )


def _program(settings: Settings, step: int) -> stage.Program:
  """Returns the length of the first chunk in a step."""
  every = settings.diffusion.first_frame_every
  return regression.given_first_frame(every, step)


STAGE = stage.Stage(
  title="teacher forcing",
  settings=Settings,
  starts_from={
    "model": ("", "pretraining", "conversion", "release", "teacher_forcing")
  },
  check=check,
  make_step=functools.partial(regression.make_step, loss),
  held_out_loss=functools.partial(regression.held_out_loss, loss),
  program=_program,
)
