"""The compiled program of VAE training: several steps in one call."""

import functools

import jax
from jaxtyping import Array, Float32, UInt8

from videomla_jax.autoencoding import clips as clips_lib
from videomla_jax.autoencoding import objective
from videomla_jax.autoencoding import settings as settings_lib
from videomla_jax.models import vae as vae_lib
from videomla_jax.training import optim

Scalars = dict[str, Float32[Array, ""]]


class Program:
  """Makes steps, on clips that it draws or that it is given."""

  def __init__(
    self, settings: settings_lib.Settings, source: clips_lib.Source
  ) -> None:
    """Prepares the program; it is compiled at its first call.

    Args:
      settings: Settings of the run.
      source: Where clips come from.
    """
    self._settings, self._source = settings, source
    self._run = jax.jit(
      self._steps, static_argnames="count", donate_argnames="state"
    )

  def __call__(
    self,
    state: optim.TrainState,
    given: UInt8[Array, "n B t h w 3"] | None,
    *,
    count: int,
  ) -> tuple[optim.TrainState, Scalars]:
    """Makes steps one after the other.

    Args:
      state: The state before them, which is used up.
      given: Clips of each step; None draws them.
      count: Number of steps.

    Returns:
      The state after them, and means of the scalars.
    """
    return self._run(state, given, count=count)

  def _steps(
    self,
    state: optim.TrainState,
    given: UInt8[Array, "n B t h w 3"] | None,
    *,
    count: int,
  ) -> tuple[optim.TrainState, Scalars]:
    if count == 1:
      # XLA has no fast gradient of convolutions in loops on CPUs.
      return self._step(state, None if given is None else given[0])
    state, scalars = jax.lax.scan(self._step, state, given, length=count)
    return state, jax.tree.map(lambda x: x.mean(), scalars)

  def _step(
    self, state: optim.TrainState, video: UInt8[Array, "B t h w 3"] | None
  ) -> tuple[optim.TrainState, Scalars]:
    """Makes one update."""
    settings = self._settings
    # A step is told by its number, wherever the run was stopped before.
    key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    of_clips, of_latents = jax.random.split(key)
    if video is None:
      video = self._source.draw(of_clips)

    def loss(
      vae: vae_lib.WanVAE,
    ) -> tuple[Float32[Array, ""], objective.Terms]:
      return objective.loss(
        vae,
        video,
        of_latents,
        weights=settings.loss,
        decoder_only=settings.network.decoder_only,
      )

    (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(
      state.model
    )
    state, scalars = optim.apply(state, gradient, value, settings.optim)
    scalars = {name: x.astype("float32") for name, x in scalars.items()}
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
