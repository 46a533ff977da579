"""Stage 1: a causal model that sees clean history, spec/training.md section 1.

Every chunk of a clip is denoised at a level of its own against the clean chunks
before it, as the rollout will see them: `diffusion.teacher_forcing`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from videomla_jax.diffusion import flow
from videomla_jax.diffusion import teacher_forcing
from videomla_jax.models import cache
from videomla_jax.training import inputs
from videomla_jax.training import optim

TITLE = "teacher forcing"
STARTS_FROM = {
  "model": ("", "pretraining", "conversion", "release", "teacher_forcing")
}
_WEIGHTS = ("none", "bell")


def check(config: Any) -> None:
  """Refuses configs of this stage that cannot be trained."""
  window = cache.Window(**config.window)
  teacher_forcing.plan(config.data.num_frames, window=window)
  if config.diffusion.loss_weight not in _WEIGHTS:
    raise ValueError(
      f"diffusion.loss_weight={config.diffusion.loss_weight!r} is unknown; "
      "use 'none' or 'bell'."
    )


def variant(config: Any, step: int) -> int | None:
  """Real frames of the first chunk: one where a first frame is given."""
  every = config.diffusion.first_frame_every
  return 1 if every and step % every == 0 else None


def loss(
  model: Any,
  batch: inputs.Batch,
  key: Array,
  *,
  config: Any,
  first_chunk: int | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, "B T"]]:
  """Loss of clips at random noise levels, and that of each frame."""
  window = cache.Window(**config.window)
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
  del frozen
  chunk = config.window.chunk_frames
  run = jax.value_and_grad(
    functools.partial(loss, config=config, first_chunk=variant), has_aux=True
  )

  def gradients(batch, key):
    (value, per_frame), gradient = run(state.model, batch, key)
    return (value, per_frame.mean(0)), gradient

  (value, per_frame), gradient = optim.accumulated(
    gradients, batch, key, parts=config.optim.accumulate
  )
  state, scalars = optim.apply(state, gradient, value, config.optim)
  first, later = per_frame[:chunk], per_frame[chunk:]
  scalars["train/loss_first_chunk"] = first.mean()
  if later.size:
    scalars["train/loss_later_chunks"] = later.mean()
  return state, {"train/loss": value} | scalars


def held_out_loss(
  model: Any,
  batch: inputs.Batch,
  key: Array,
  *,
  frozen: dict[str, Any],
  config: Any,
) -> Float32[Array, ""]:
  """The loss of a model on clips it was not trained on."""
  del frozen
  return loss(model, batch, key, config=config)[0]
