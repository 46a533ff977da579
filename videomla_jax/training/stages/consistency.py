"""Stage 2: a student that jumps to x₀, docs/method.md, section 11.

The target network is the exponential average of the student, which is also what
is evaluated and handed on. The teacher is the frozen model of stage 1.
"""

import dataclasses
import functools

import jax.numpy as jnp

from videomla_jax.diffusion import consistency
from videomla_jax.diffusion import sampling
from videomla_jax.diffusion import teacher_forcing
from videomla_jax.training import inputs
from videomla_jax.training import regression
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(settings_lib.Diffusion):
  """Group `diffusion` of this stage.

  Attributes:
    num_levels: Levels of the grid that the student jumps from.
    guidance: w of the teacher's classifier-free guidance.
    timesteps: Timesteps that the student is sampled at, before the warp; empty
      without samples.
    first_frame_every: N, if the first chunk is a single given frame in every
      N-th step; 0 for never.
  """

  num_levels: int
  guidance: float
  timesteps: tuple[int, ...]
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
    ValueError: If a clip is not made of whole chunks, the grid has no step, or
      there is no average.
  """
  teacher_forcing.plan(settings.data.num_frames, window=settings.window)
  consistency.check_levels(settings.diffusion.num_levels)
  if settings.optim.ema_decay == 0:
    raise ValueError(
      "optim.ema_decay=0.0 makes the student its own target; use 0.99."
    )


def loss(
  arguments: regression.LossArguments, settings: Settings
) -> regression.Losses:
  """Returns the consistency loss of clips, Eq. (11.4).

  Args:
    arguments: Everything; "teacher" is the frozen network.
    settings: Settings of the stage.
  """
  batch, teacher = arguments.batch, arguments.frozen["teacher"]
  assert arguments.average is not None  # `check` asks for one
  window, first_chunk = settings.window, arguments.first_chunk
  clean = inputs.latents(arguments.model, batch)
  # Each network reads the words with its own encoder.
  student, target = (
    consistency.causal(
      inputs.dit(network),
      clean,
      inputs.text(network, batch),
      window=window,
      first_chunk=first_chunk,
    )
    for network in (arguments.model, arguments.average)
  )
  guided = consistency.causal_guided(
    inputs.dit(teacher),
    clean,
    inputs.text(teacher, batch),
    inputs.negative(teacher, batch),
    weight=settings.diffusion.guidance,
    window=window,
    first_chunk=first_chunk,
  )
  # Padding in front of a short first chunk does not count in the loss.
  plan = teacher_forcing.plan(
    clean.shape[1], window=window, first_chunk=first_chunk
  )
  num_levels = settings.diffusion.num_levels
  return consistency.loss(
    student,
    target,
    guided,
    clean,
    consistency.draw(arguments.key, clean.shape, num_levels=num_levels),
    num_levels=num_levels,
    s=settings.diffusion.shift,
    trained=jnp.asarray(plan.trained.reshape(-1)),
  )


def _program(settings: Settings, step: int) -> stage.Program:
  """Returns the length of the first chunk in a step."""
  every = settings.diffusion.first_frame_every
  return regression.given_first_frame(every, step)


def _sampler(settings: Settings) -> sampling.Sampler:
  """Returns the few steps that the student learns to take."""
  diffusion = settings.diffusion
  return sampling.few_step(diffusion.timesteps, shift=diffusion.shift)


STAGE = stage.Stage(
  title="consistency",
  settings=Settings,
  starts_from={
    "model": ("teacher_forcing", "consistency"),
    "teacher": ("teacher_forcing",),
  },
  check=check,
  make_step=functools.partial(regression.make_step, loss),
  held_out_loss=functools.partial(regression.held_out_loss, loss),
  sampler=_sampler,
  # The student learns to jump from all levels.
  sampler_keys=("diffusion.timesteps",),
  program=_program,
)
