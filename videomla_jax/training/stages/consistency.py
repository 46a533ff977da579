"""Stage 2: a student that jumps to x₀, spec/training.md section 2.

The target network is the exponential average of the student, and it is what is
evaluated and handed on. The teacher is the frozen stage-1 model.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float32

from videomla_jax.diffusion import consistency
from videomla_jax.diffusion import teacher_forcing
from videomla_jax.models import window as window_lib
from videomla_jax.training import inputs

TITLE = "consistency"
STARTS_FROM = {
  "model": ("teacher_forcing", "consistency"),
  "teacher": ("teacher_forcing",),
}


def check(config: Any) -> None:
  """Refuses configs of this stage that cannot be trained."""
  window = window_lib.Window(**config.window)
  teacher_forcing.plan(config.data.num_frames, window=window)
  consistency.check_levels(config.diffusion.num_levels)
  if config.optim.ema_decay == 0:
    raise ValueError(
      "optim.ema_decay=0.0 makes the student its own target; use 0.99."
    )


def loss(
  model: Any,
  average: Any,
  batch: inputs.Batch,
  key: Array,
  *,
  frozen: dict[str, Any],
  config: Any,
  first_chunk: int | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, "B T"]]:
  """Consistency loss of clips at random levels, see `regression`."""
  clean = inputs.latents(model, batch)
  where: dict[str, Any] = dict(
    window=window_lib.Window(**config.window), first_chunk=first_chunk
  )
  own, target = (
    consistency.causal(inputs.dit(m), clean, inputs.text(m, batch), **where)
    for m in (model, average)
  )
  teacher = frozen["teacher"]
  guided = consistency.causal_guided(
    inputs.dit(teacher),
    clean,
    inputs.text(teacher, batch),
    inputs.negative(teacher, batch),
    weight=config.diffusion.guidance,
    **where,
  )
  plan = teacher_forcing.plan(clean.shape[1], **where)
  num_levels = config.diffusion.num_levels
  return consistency.loss(
    own,
    target,
    guided,
    clean,
    consistency.draw(key, clean.shape, num_levels=num_levels),
    num_levels=num_levels,
    s=config.diffusion.shift,
    trained=jnp.asarray(plan.trained.reshape(-1)),
  )
