"""The loss is what the method says, and training lowers it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests import tolerances
from tests.autoencoding import tiny_vae
from videomla_jax.autoencoding import objective
from videomla_jax.autoencoding import settings


def _loss(vae, video, **changes):
  weights = settings.Loss(**(dict(squared=2.0, kl=0.1, temporal=0.5) | changes))
  return objective.loss(vae, video, jax.random.key(0), weights=weights)


def test_the_loss_is_the_sum_of_its_weighted_parts(seed) -> None:
  vae, rng = tiny_vae.build(seed % 1000), np.random.default_rng(seed)
  video = tiny_vae.video(rng)
  total, terms = _loss(vae, video)
  parts = terms.reconstruction + 2 * terms.squared
  parts += 0.1 * terms.kl + 0.5 * terms.temporal
  tolerances.assert_close(total, parts, "float32")
  # The same in NumPy, from the encoder's moments.
  pixels = np.asarray(video, np.float64) / 127.5 - 1
  state = vae.start_encode(2, 8, 8)
  mean, log_variance, _ = vae.moments(jnp.asarray(pixels, jnp.float32), state)
  mean, v = np.asarray(mean, np.float64), np.asarray(log_variance, np.float64)
  kl = 0.5 * (mean**2 + np.exp(v) - 1 - v).mean()
  tolerances.assert_close(terms.kl, kl, "float32_deep")
  noise = jax.random.normal(jax.random.key(0), mean.shape)
  found = objective.reconstruct(
    vae, jnp.asarray(mean + np.exp(v / 2) * np.asarray(noise), jnp.float32)
  )
  error = np.asarray(found, np.float64) - pixels
  tolerances.assert_close(
    terms.reconstruction, np.abs(error).mean(), "float32_deep"
  )
  tolerances.assert_close(
    terms.squared, np.square(error).mean(), "float32_deep"
  )
  temporal = np.abs(np.diff(error, axis=1)).mean()
  tolerances.assert_close(terms.temporal, temporal, "float32_deep")


def test_an_error_that_does_not_change_is_none_in_time(
  monkeypatch, seed
) -> None:
  vae, rng = tiny_vae.build(seed % 1000), np.random.default_rng(seed)
  video = tiny_vae.video(rng)
  pixels = video.astype(jnp.float32) / 127.5 - 1
  still = jnp.asarray(rng.uniform(-0.5, 0.5, (2, 1, 8, 8, 3)), jnp.float32)
  monkeypatch.setattr(objective, "reconstruct", lambda *_: pixels + still)
  _, terms = _loss(vae, video)
  tolerances.assert_close(
    terms.reconstruction, np.abs(still).mean(), "float32_deep"
  )
  assert terms.temporal < 1e-6
  # One that changes its sign from frame to frame counts twice.
  sign = jnp.asarray([1, -1, 1, -1, 1])[:, None, None, None]
  monkeypatch.setattr(
    objective, "reconstruct", lambda *_: pixels + sign * still
  )
  _, terms = _loss(vae, video)
  tolerances.assert_close(
    terms.temporal, 2 * np.abs(still).mean(), "float32_deep"
  )


def test_statistics_of_latents_do_not_change_the_loss(seed) -> None:
  rng = np.random.default_rng(seed)
  video = tiny_vae.video(rng)
  plain, _ = _loss(tiny_vae.build(7), video)
  changed = tiny_vae.build(7, mean=(0.3, -1.0, 2.0), std=(0.5, 2.0, 1.5))
  found, _ = _loss(changed, video)
  tolerances.assert_close(found, plain, "float32_deep")


def test_only_the_decoder_learns_if_asked(seed) -> None:
  vae, rng = tiny_vae.build(seed % 1000), np.random.default_rng(seed)
  video = tiny_vae.video(rng)
  weights = settings.Loss(squared=2.0, kl=0.1, temporal=0.5)
  gradient = jax.grad(
    lambda m: objective.loss(
      m, video, jax.random.key(0), weights=weights, decoder_only=True
    )[0]
  )(vae)
  assert not any(
    np.asarray(x).any()
    for x in jax.tree.leaves((gradient.encoder, gradient.quant))
  )
  assert all(
    np.asarray(x).any()
    for x in jax.tree.leaves(gradient.decoder.conv_out.kernel)
  )


def test_steps_on_one_clip_lower_its_error(seed) -> None:
  vae, rng = tiny_vae.build(seed % 1000), np.random.default_rng(seed)
  # A smooth clip: noise has nothing that a VAE could learn.
  level = rng.integers(40, 216, (1, 1, 1, 1, 3))
  video = jnp.asarray(np.broadcast_to(level, (1, 5, 8, 8, 3)), jnp.uint8)
  optimiser = optax.adam(1e-2)

  @jax.jit
  def step(vae, state):
    loss = lambda m: _loss(m, video, kl=1e-3)
    (_, terms), gradient = jax.value_and_grad(loss, has_aux=True)(vae)
    updates, state = optimiser.update(gradient, state)
    return optax.apply_updates(vae, updates), state, terms

  state, found = optimiser.init(vae), []
  for _ in range(60):
    vae, state, terms = step(vae, state)
    found.append(terms)
  assert found[-1].reconstruction < found[0].reconstruction / 2
  assert found[-1].squared < found[0].squared / 4
