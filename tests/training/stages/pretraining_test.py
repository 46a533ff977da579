"""Tests of noise levels in pretraining: per clip, per frame, and their loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tiny_project
from tests import tolerances
from videomla_jax.diffusion import bidirectional
from videomla_jax.diffusion import flow
from videomla_jax.training import regression
from videomla_jax.training.stages import pretraining
from videomla_jax.training.stages import table

SHAPE = (2000, 5)


def _settings(**diffusion):
  config = tiny_project.config("pretraining", "small")
  config.diffusion.update(diffusion)
  return table.read(config)[1]


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_as_many_clips_as_asked_have_a_level_per_frame(chance, seed) -> None:
  levels = pretraining._levels(jax.random.key(seed), SHAPE, chance)
  own = np.ptp(levels, axis=1) > 0
  assert np.mean(own) == pytest.approx(chance, abs=0.06)  # 5 deviations
  assert 0 < levels.min() and levels.max() <= 1
  # Uniform whatever the chance: every level is trained as often as before.
  counts, _ = np.histogram(levels[:, 3], bins=10, range=(0, 1))
  np.testing.assert_allclose(counts / SHAPE[0], 0.1, atol=0.035)


def test_a_level_per_frame_that_is_the_same_is_one_per_clip(seed) -> None:
  rng = np.random.default_rng(seed)
  model = tiny_model.build("dense", rng)
  x = tiny_model.normal(rng, 3, 5, *tiny_model.FRAME)
  text = tiny_model.normal(rng, 3, *tiny_model.TEXT)
  sigma = jnp.asarray(rng.uniform(0.1, 1, 3), jnp.float32)
  per_frame = jnp.broadcast_to(sigma[:, None], (3, 5))
  np.testing.assert_array_equal(
    bidirectional.velocity(model, x, sigma, text),
    bidirectional.velocity(model, x, per_frame, text),
  )


def test_loss_is_the_error_of_the_velocity_at_the_drawn_levels(seed) -> None:
  rng = np.random.default_rng(seed)
  model = tiny_model.build("dense", rng)
  batch = {
    "latents": tiny_model.normal(rng, 4, 5, *tiny_model.FRAME),
    "text": tiny_model.normal(rng, 4, *tiny_model.TEXT),
  }
  settings = _settings(frame_levels=0.5, shift=3.0)
  key = jax.random.key(seed)
  loss, per_frame = pretraining.loss(
    regression.LossArguments(model, None, {}, batch, key), settings
  )
  key_noise, key_sigma = jax.random.split(key)
  clean = batch["latents"]
  noise = jax.random.normal(key_noise, clean.shape)
  sigma = flow.shift(pretraining._levels(key_sigma, (4, 5), 0.5), 3.0)
  level = sigma[..., None, None, None]
  noisy = (1 - level) * clean + level * noise
  out = bidirectional.velocity(model, noisy, sigma, batch["text"])
  errors = ((out - (noise - clean)) ** 2).mean((2, 3, 4))
  tolerances.assert_close(per_frame, errors)
  tolerances.assert_close(loss, errors.mean())
