"""The compiled program of VAE training: several steps in one call."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Shaped
import numpy as np

from videomla_jax.autoencoding import clips as clips_lib
from videomla_jax.autoencoding import objective
from videomla_jax.autoencoding import settings as settings_lib
from videomla_jax.models import vae as vae_lib
from videomla_jax.ops import convolution
from videomla_jax.training import optim

Scalars = optim.Metrics


class Program:
  """Makes steps on the clips of a source."""

  def __init__(
    self, settings: settings_lib.Settings, source: clips_lib.Source
  ) -> None:
    """Prepares the program; it is compiled at its first call.

    Args:
      settings: Settings of the run.
      source: Where clips come from.
    """
    self._settings, self.source = settings, source
    self._run = jax.jit(
      self.steps,
      donate_argnums=0,
      compiler_options=convolution.CHANNELS_LAST,
    )

  def __call__(
    self, state: optim.TrainState, given: Shaped[np.ndarray, "n ..."]
  ) -> tuple[optim.TrainState, Scalars]:
    """Makes steps one after the other.

    Args:
      state: The state before them, which is used up.
      given: What the source yielded for each step.

    Returns:
      The state after them, and means of the scalars; of updates that were left
      out the number so far.
    """
    return self._run(state, given)

  def steps(
    self, state: optim.TrainState, given: Shaped[Array, "n ..."]
  ) -> tuple[optim.TrainState, Scalars]:
    """Does what a call does; this is the function that is compiled."""
    if len(given) == 1:
      # XLA has no fast gradient of convolutions in loops on CPUs.
      return self._step(state, given[0])
    state, scalars = jax.lax.scan(self._step, state, given)
    means = jax.tree.map(lambda x: x.astype(jnp.float32).mean(), scalars)
    return state, means | {"train/skipped": scalars["train/skipped"][-1]}

  def _step(
    self, state: optim.TrainState, given: Shaped[Array, "..."]
  ) -> tuple[optim.TrainState, Scalars]:
    """Makes one update."""
    settings, video = self._settings, self.source.clips(given)
    # A step is told by its number, wherever the run was stopped before. Clips
    # that are drawn have the key of the step itself.
    key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    key = jax.random.fold_in(key, 1)

    def loss(
      vae: vae_lib.WanVAE,
    ) -> tuple[Float32[Array, ""], objective.Terms]:
      return objective.loss(
        vae,
        video,
        key,
        weights=settings.loss,
        decoder_only=settings.network.decoder_only,
      )

    (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(
      state.model
    )
    state, scalars = optim.apply(state, gradient, value, settings.optim)
    return state, scalars | {
      "vae/loss": value,
      "vae/reconstruction": terms.reconstruction,
      "vae/squared": terms.squared,
      "vae/kl": terms.kl,
      "vae/temporal": terms.temporal,
    }


@functools.partial(jax.jit, static_argnames="settings")
def start(
  vae: vae_lib.WanVAE, *, settings: settings_lib.Settings
) -> optim.TrainState:
  """Returns the state before the first step.

  Args:
    vae: The network.
    settings: Settings of the run.
  """
  return optim.init(vae, settings.optim)
