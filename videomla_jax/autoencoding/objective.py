"""The loss of a VAE: reconstruction, divergence, differences in time.

docs/method.md, section 4.9.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Key, UInt8

from videomla_jax.autoencoding import settings as settings_lib
from videomla_jax.models import vae as vae_lib

Scalar = Float32[Array, ""]
# Beyond these, exp of a log variance is 0 or overflows.
_LOG_VARIANCES = (-30.0, 20.0)


class Terms(NamedTuple):
  """The parts of the loss, without their weights.

  Attributes:
    reconstruction: Mean absolute error of pixels in [-1, 1].
    squared: Mean squared error of the same, in which small things count.
    kl: Mean divergence of a latent scalar from a normal distribution.
    temporal: Mean absolute error of differences between frames.
  """

  reconstruction: Scalar
  squared: Scalar
  kl: Scalar
  temporal: Scalar


def loss(
  vae: vae_lib.WanVAE,
  video: UInt8[Array, "B t h w 3"],
  key: Key[Array, ""],
  *,
  weights: settings_lib.Loss,
  decoder_only: bool = False,
) -> tuple[Scalar, Terms]:
  """Returns the loss of clips, Eq. (4.8), and its parts.

  Args:
    vae: The network. All frames after the first are one group, which gives what
      groups give one by one.
    video: Clips.
    key: Random key of the latents.
    weights: Weights of the parts.
    decoder_only: Whether the encoder gets no gradient.
  """
  pixels = video.astype(jnp.float32) / 127.5 - 1
  state = vae.start_encode(video.shape[0], *video.shape[2:4])
  mean, log_variance, _ = vae.moments(pixels, state, at_once=True)
  if decoder_only:
    mean, log_variance = jax.lax.stop_gradient((mean, log_variance))
  log_variance = jnp.clip(log_variance, *_LOG_VARIANCES)
  noise = jax.random.normal(key, mean.shape)
  drawn = mean + jnp.exp(0.5 * log_variance) * noise
  found = reconstruct(vae, vae.normalise(drawn))
  error = found - pixels
  terms = Terms(
    reconstruction=jnp.abs(error).mean(),
    squared=jnp.square(error).mean(),
    kl=0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).mean(),
    temporal=_mean_change(error),
  )
  total = terms.reconstruction + weights.squared * terms.squared
  total += weights.kl * terms.kl + weights.temporal * terms.temporal
  return total, terms


def _mean_change(error: Float32[Array, "B t h w 3"]) -> Scalar:
  """Returns the mean absolute difference between frames, 0 of a single one."""
  if error.shape[1] == 1:
    return jnp.zeros(())
  return jnp.abs(jnp.diff(error, axis=1)).mean()


def reconstruct(
  vae: vae_lib.WanVAE, latents: Float[Array, "B T H W C"]
) -> Float32[Array, "B t h w 3"]:
  """Returns pixels of whole clips, in about [-1, 1].

  Args:
    vae: The network.
    latents: Normalised latents.
  """
  state = vae.start(latents.shape[0], *latents.shape[2:4])
  return vae.decode_unclipped(latents, state, at_once=True)[0]
