"""Stage 1: a causal model that sees clean history, spec/training.md section 1.

Every chunk of a clip is denoised at a level of its own against the clean chunks
before it, as the rollout will see them: `diffusion.teacher_forcing`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from videomla_jax.diffusion import flow
from videomla_jax.diffusion import teacher_forcing
from videomla_jax.models import window as window_lib
from videomla_jax.training import inputs

TITLE = "teacher forcing"
STARTS_FROM = {
  "model": ("", "pretraining", "conversion", "release", "teacher_forcing")
}
_WEIGHTS = ("none", "bell")


def check(config: Any) -> None:
  """Refuses configs of this stage that cannot be trained."""
  window = window_lib.Window(**config.window)
  teacher_forcing.plan(config.data.num_frames, window=window)
  if config.diffusion.loss_weight not in _WEIGHTS:
    raise ValueError(
      f"diffusion.loss_weight={config.diffusion.loss_weight!r} is unknown; "
      "use 'none' or 'bell'."
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
  """Loss of clips at random noise levels, see `regression`."""
  del average, frozen
  window = window_lib.Window(**config.window)
  clean = inputs.latents(model, batch)
  key_noise, key_sigma = jax.random.split(key)
  sigma = teacher_forcing.sample_sigma(
    key_sigma,
    batch=clean.shape[0],
    chunks=clean.shape[1] // window.chunk_frames,
    chunk_frames=window.chunk_frames,
    s=config.diffusion.shift,
  )
  weight = None
  if config.diffusion.loss_weight == "bell":
    weight = flow.training_weight(sigma, s=config.diffusion.shift)
  return teacher_forcing.loss(
    inputs.dit(model),
    clean,
    jax.random.normal(key_noise, clean.shape, jnp.float32),
    sigma,
    inputs.text(model, batch),
    window=window,
    first_chunk=first_chunk,
    weight=weight,
  )
