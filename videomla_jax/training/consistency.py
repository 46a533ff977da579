"""Stage 2: a student that jumps to x₀, spec/training.md section 2.

The target network is the exponential average of the student, and it is what is
evaluated and handed on. The teacher is the frozen stage-1 model.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from videomla_jax.diffusion import consistency
from videomla_jax.diffusion import teacher_forcing
from videomla_jax.models import cache
from videomla_jax.training import inputs
from videomla_jax.training import optim

TITLE = "consistency"
STARTS_FROM = {
  "model": ("teacher_forcing", "consistency"),
  "teacher": ("teacher_forcing",),
}


def check(config: Any) -> None:
  """Refuses configs of this stage that cannot be trained."""
  window = cache.Window(**config.window)
  teacher_forcing.plan(config.data.num_frames, window=window)
  consistency.check_levels(config.diffusion.num_levels)
  if config.optim.ema_decay == 0:
    raise ValueError(
      "optim.ema_decay=0.0 makes the student its own target; use 0.99."
    )


def variant(config: Any, step: int) -> int | None:
  """Real frames of the first chunk: one where a first frame is given."""
  every = config.diffusion.first_frame_every
  return 1 if every and step % every == 0 else None


def _networks(student, target, batch, frozen, config, first_chunk):
  """Student, target and guided teacher as functions of noisy latents."""
  clean = inputs.latents(student, batch)
  where = dict(window=cache.Window(**config.window), first_chunk=first_chunk)
  teacher = frozen["teacher"]
  guided = consistency.causal_guided(
    inputs.dit(teacher),
    clean,
    inputs.text(teacher, batch),
    inputs.negative(teacher, batch),
    weight=config.diffusion.guidance,
    **where,
  )
  own, averaged = (
    consistency.causal(inputs.dit(m), clean, inputs.text(m, batch), **where)
    for m in (student, target)
  )
  plan = teacher_forcing.plan(clean.shape[1], **where)
  return clean, own, averaged, guided, jnp.asarray(plan.trained.reshape(-1))


def loss(
  student: Any,
  target: Any,
  batch: inputs.Batch,
  key: Array,
  *,
  frozen: dict[str, Any],
  config: Any,
  first_chunk: int | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, "B T"]]:
  """Consistency loss of clips at random levels, and that of each frame."""
  clean, own, averaged, guided, trained = _networks(
    student, target, batch, frozen, config, first_chunk
  )
  num_levels = config.diffusion.num_levels
  return consistency.loss(
    own,
    averaged,
    guided,
    clean,
    consistency.draw(key, clean.shape, num_levels=num_levels),
    num_levels=num_levels,
    s=config.diffusion.shift,
    trained=trained,
  )


def step(
  state: optim.TrainState,
  batch: inputs.Batch,
  key: Array,
  *,
  frozen: dict[str, Any],
  config: Any,
  variant: int | None,
) -> tuple[optim.TrainState, optim.Metrics]:
  """One update: `(state, batch, key) -> (state, metrics)`."""

  def gradients(batch, key):
    def of(student):
      value, _ = loss(
        student,
        state.ema,
        batch,
        key,
        frozen=frozen,
        config=config,
        first_chunk=variant,
      )
      return value

    return jax.value_and_grad(of)(state.model)

  value, gradient = optim.accumulated(
    gradients, batch, key, parts=config.optim.accumulate
  )
  state, scalars = optim.apply(state, gradient, value, config.optim)
  return state, {"train/loss": value} | scalars


def held_out_loss(
  model: Any,
  batch: inputs.Batch,
  key: Array,
  *,
  frozen: dict[str, Any],
  config: Any,
) -> Float32[Array, ""]:
  """How far a model is from consistent on clips it was not trained on."""
  return loss(model, model, batch, key, frozen=frozen, config=config)[0]
