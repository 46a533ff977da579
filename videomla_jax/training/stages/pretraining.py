"""Stage 0: a bidirectional model by flow matching on whole clips.

For the small world this makes what Wan2.1 is to the real one: the source of the
conversion, the real score and the critic. For Wan it continues its training.

  x_σ = (1 - σ) x₀ + σ ε,   L = mean (v(x_σ, σ) - (ε - x₀))²

with σ = S(u; s), u uniform (docs/method.md, section 6.4). A clip has one level,
as when it is sampled; with a chance of `diffusion.frame_levels` each of its
frames has one of its own (arXiv:2407.01392), so that a young model learns
motion from frames that it can see.
"""

import dataclasses
import functools
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from videomla_jax.diffusion import bidirectional
from videomla_jax.diffusion import flow
from videomla_jax.runtime import config_values
from videomla_jax.training import inputs
from videomla_jax.training import regression
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(settings_lib.Diffusion):
  """Group `diffusion` of this stage.

  Attributes:
    frame_levels: Chance that the frames of a clip have levels of their own.
  """

  frame_levels: Annotated[float, config_values.Range(0, 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(settings_lib.Training):
  """The whole config of this stage."""

  diffusion: Diffusion


def check(settings: Settings) -> None:
  """Refuses configs of this stage that cannot be trained.

  Args:
    settings: Settings of the stage.

  Raises:
    ValueError: If the network is not a dense one.
  """
  if settings.model.kind != "dense":
    raise ValueError(
      f"model.kind={settings.model.kind!r} must be 'dense' in pretraining; "
      "train the dense model, then convert it."
    )


def loss(
  arguments: regression.LossArguments, settings: Settings
) -> regression.Losses:
  """Returns the flow-matching loss of whole clips.

  Args:
    arguments: Model, batch and key; nothing else is read.
    settings: Settings of the stage.
  """
  clean = inputs.latents(arguments.model, arguments.batch)
  key_noise, key_sigma = jax.random.split(arguments.key)
  chance = settings.diffusion.frame_levels
  sigma = flow.shift(
    _levels(key_sigma, clean.shape[:2], chance), settings.diffusion.shift
  )
  noise = jax.random.normal(key_noise, clean.shape, jnp.float32)
  noisy = flow.add_noise(clean, noise, sigma)
  text = inputs.text(arguments.model, arguments.batch)
  out = bidirectional.velocity(inputs.dit(arguments.model), noisy, sigma, text)
  error = (out - flow.velocity_target(clean, noise)) ** 2
  return error.mean(), error.mean(axis=(2, 3, 4))


def _levels(
  key: Array, shape: tuple[int, ...], frame_levels: float
) -> Float32[Array, "B T"]:
  """Draws levels before the warp, uniform in (0, 1].

  Args:
    key: Random key.
    shape: B, T of the clips.
    frame_levels: Chance that the frames of a clip have levels of their own.
  """
  key_level, key_kind = jax.random.split(key)
  # `uniform` is in [0, 1), and pure noise is what sampling starts from.
  u = 1 - jax.random.uniform(key_level, shape, jnp.float32)
  per_frame = jax.random.bernoulli(key_kind, frame_levels, (shape[0], 1))
  # Levels are drawn for all frames; a clip with one level takes its first.
  return jnp.where(per_frame, u, u[:, :1])


STAGE = stage.Stage(
  title="pretraining",
  settings=Settings,
  starts_from={"model": ("", "pretraining", "teacher_forcing", "release")},
  causal=False,
  check=check,
  make_step=functools.partial(regression.make_step, loss),
  held_out_loss=functools.partial(regression.held_out_loss, loss),
)
