"""Stage 3: distribution matching on self-rollouts, docs/method.md, section 12.

A step is one update of the student and then `critic_updates` updates of the
critic (`distribution_matching`). Only prompts are needed. The real score is
frozen; it and the critic are bidirectional.
"""

import dataclasses

from videomla_jax.diffusion import dmd
from videomla_jax.diffusion import sampling
from videomla_jax.training import batches
from videomla_jax.training import distribution_matching
from videomla_jax.training import long_tuning
from videomla_jax.training import optim
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(settings_lib.Diffusion):
  """Group `diffusion` of this stage.

  Attributes:
    timesteps: Timesteps that the student is sampled at, before the warp.
    guidance: w of the real score's classifier-free guidance.
  """

  timesteps: tuple[int, ...]
  guidance: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim(settings_lib.Optim):
  """Group `optim` of this stage, for the student and the critic.

  Attributes:
    critic_updates: Updates of the critic for each one of the student.
    critic_learning_rate: Highest learning rate of the critic.
  """

  critic_updates: int
  critic_learning_rate: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
  """Group `rollout`: videos that the student makes in a step.

  Attributes:
    num_frames: Latent frames of a rollout.
    stream_frames: Latent frames up to which videos go on from step to step; 0
      if they end with their step.
  """

  num_frames: int
  stream_frames: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(settings_lib.Training):
  """The whole config of this stage."""

  diffusion: Diffusion
  optim: Optim
  rollout: Rollout


def check(settings: Settings) -> None:
  """Refuses configs of this stage that cannot be trained.

  Args:
    settings: Settings of the stage.

  Raises:
    ValueError: If window, schedule, clip and rollout do not fit each other, or
      the critic is not trained.
  """
  frames, optim_settings = settings.rollout, settings.optim
  if frames.num_frames < settings.data.num_frames:
    raise ValueError(
      f"rollout.num_frames={frames.num_frames} must be at least"
      f" data.num_frames={settings.data.num_frames}, the clip that is judged;"
      " roll out more frames."
    )
  # Making the updates refuses what does not fit each other.
  updates(settings)
  if frames.stream_frames:
    long_tuning.check(
      clip=settings.data.num_frames,
      rolled=frames.num_frames,
      longest=frames.stream_frames,
      accumulate=optim_settings.accumulate,
    )
  if optim_settings.critic_updates < 1:
    raise ValueError(
      f"optim.critic_updates={optim_settings.critic_updates} must be at least "
      "1; use 5."
    )
  if not 0 < optim_settings.critic_learning_rate < float("inf"):
    raise ValueError(
      f"optim.critic_learning_rate={optim_settings.critic_learning_rate} must "
      "be positive and finite; the paper's is 4e-7."
    )


def updates(settings: Settings) -> distribution_matching.DistributionMatching:
  """Returns the updates of a step.

  Args:
    settings: Settings of the stage.

  Raises:
    ValueError: If window, schedule and clip do not fit each other.
  """
  # The scores see clips of the length that they were trained with.
  setup = dmd.Setup(
    window=settings.window,
    sampler=_sampler(settings),
    clip_frames=settings.data.num_frames,
    guidance=settings.diffusion.guidance,
    shift=settings.diffusion.shift,
  )
  frames = settings.rollout.num_frames
  # This refuses clips and rollouts that are not made of whole chunks.
  dmd.num_trained(frames, frames, setup=setup)
  return distribution_matching.DistributionMatching(
    setup=setup,
    optim=settings.optim,
    critic_updates=settings.optim.critic_updates,
    critic_learning_rate=settings.optim.critic_learning_rate,
    frame=settings.data.latent_shape,
    num_frames=frames,
    tuning=_tuning(settings),
  )


def _sampler(settings: Settings) -> sampling.Sampler:
  """Returns the few steps that the student is trained with."""
  diffusion = settings.diffusion
  return sampling.few_step(diffusion.timesteps, shift=diffusion.shift)


def _tuning(settings: Settings) -> long_tuning.LongTuning | None:
  """Returns how videos go on; None if each ends with its step."""
  if not settings.rollout.stream_frames:
    return None
  return long_tuning.LongTuning(
    window=settings.window,
    frame=settings.data.latent_shape,
    clip_frames=settings.data.num_frames,
    max_frames=settings.rollout.stream_frames,
  )


def _init(
  networks: stage.Networks, settings: Settings
) -> distribution_matching.DmdState:
  """Returns the student with an average and the critic without."""
  student = optim.init(networks["model"], settings.optim)
  critic = optim.init(networks["critic"], settings.optim, averaged=False)
  tuning, carry = _tuning(settings), None
  if tuning is not None:
    examples = STAGE.examples_per_step(settings)
    prompts = batches.abstract_prompts(settings.data, examples)
    carry = tuning.empty(networks["model"], prompts)
  return distribution_matching.DmdState(student, critic, carry)


def _program(settings: Settings, step: int) -> stage.Program:
  """Returns whether videos begin or go on; None if they end with their step."""
  tuning = _tuning(settings)
  return None if tuning is None else tuning.program(step)


def _batches_per_step(settings: Settings) -> int:
  """Returns one batch for each update, or one for all where videos go on."""
  if settings.rollout.stream_frames:
    return 1  # All updates of a step are on the same videos.
  return 1 + settings.optim.critic_updates


STAGE = stage.Stage(
  title="distribution matching",
  settings=Settings,
  starts_from={
    "model": ("consistency", "dmd"),
    "real": ("pretraining", "release"),
    "critic": ("pretraining", "release"),
  },
  trained=("model", "critic"),
  scores=("real", "critic"),
  reads_clips=False,
  check=check,
  init=_init,
  make_step=lambda settings: updates(settings).step,
  sampler=_sampler,
  sampler_keys=(),  # training takes the same steps
  program=_program,
  batches_per_step=_batches_per_step,
  # The exit is uniform over the calls, and the exit call is no trip.
  mean_trips=lambda settings: (len(settings.diffusion.timesteps) - 1) / 2,
)
