"""The loss is what the method says, and training lowers it."""

import jax
import jax.numpy as jnp
import numpy as np

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


def test_a_still_error_is_no_error_in_time(seed) -> None:
  vae = tiny_vae.build(seed % 1000)
  # The same frame again and again: whatever the network makes of it, its error
  # changes only with what the network itself changes.
  video = jnp.full((1, 5, 8, 8, 3), 200, jnp.uint8)
  _, terms = _loss(vae, video)
  assert 0 <= terms.temporal <= 2 * terms.reconstruction


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


def test_steps_on_one_clip_lower_every_part(seed) -> None:
  vae, rng = tiny_vae.build(seed % 1000), np.random.default_rng(seed)
  video = tiny_vae.video(rng, size=1)

  @jax.jit
  def step(vae):
    loss = lambda m: _loss(m, video, kl=1e-3)
    (_, terms), gradient = jax.value_and_grad(loss, has_aux=True)(vae)
    return jax.tree.map(
      lambda p, g: p - 0.02 * jnp.sign(g), vae, gradient
    ), terms

  found = []
  for _ in range(12):
    vae, terms = step(vae)
    found.append(terms)
  assert min(x.reconstruction for x in found[1:]) < found[0].reconstruction
