"""Stage 2: a student that jumps to x₀, docs/method.md, section 11.

The target network is the exponential average of the student, and it is what is
evaluated and handed on. The teacher is the frozen stage-1 model.
"""

import dataclasses
import functools

import jax.numpy as jnp

from videomla_jax.diffusion import consistency
from videomla_jax.diffusion import sampling
from videomla_jax.diffusion import teacher_forcing
from videomla_jax.training import inputs
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import regression
from videomla_jax.training.stages import stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(settings_lib.Diffusion):
  """Noise levels of this stage.

  Attributes:
    num_levels: Levels of the grid that the student jumps from.
    guidance: w of the teacher's classifier-free guidance.
    timesteps: Timesteps that the student is sampled at, before the warp.
    first_frame_every: Steps between two whose first chunk is one given frame;
      0 for never.
  """

  num_levels: int
  guidance: float
  timesteps: tuple[int, ...]
  first_frame_every: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(settings_lib.Training):
  """Config of this stage."""

  diffusion: Diffusion


def check(settings: Settings) -> None:
  """Refuses configs of this stage that cannot be trained.

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


def loss(given: regression.LossInputs, settings: Settings) -> regression.Losses:
  """Returns the consistency loss of clips, and that of each frame."""
  batch, teacher = given.batch, given.frozen["teacher"]
  assert given.average is not None  # `check` asks for one
  window, first_chunk = settings.window, given.first_chunk
  clean = inputs.latents(given.model, batch)
  student, target = (
    consistency.causal(
      inputs.dit(network),
      clean,
      inputs.text(network, batch),
      window=window,
      first_chunk=first_chunk,
    )
    for network in (given.model, given.average)
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
  plan = teacher_forcing.plan(
    clean.shape[1], window=window, first_chunk=first_chunk
  )
  num_levels = settings.diffusion.num_levels
  return consistency.loss(
    student,
    target,
    guided,
    clean,
    consistency.draw(given.key, clean.shape, num_levels=num_levels),
    num_levels=num_levels,
    s=settings.diffusion.shift,
    trained=jnp.asarray(plan.trained.reshape(-1)),
  )


def _program(settings: Settings, step: int) -> stage.Program:
  every = settings.diffusion.first_frame_every
  return regression.given_first_frame(every, step)


def _sampler(settings: Settings) -> sampling.Sampler:
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
  program=_program,
)
