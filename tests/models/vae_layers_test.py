"""Tests of the VAE's layers: laid out for any library, they stay the same."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.models import vae_layers as layers
from videomla_jax.ops import convolution

_FRAME = (2, 3)  # latent rows and columns


def _chain() -> layers.Chain:
  rngs, kwargs = nnx.Rngs(0), dict(dtype=jnp.float32)
  return layers.Chain(
    [
      layers.Residual(6, 8, rngs=rngs, **kwargs),
      layers.Upsample(8, temporal=True, rngs=rngs, **kwargs),
      layers.Downsample(4, temporal=True, rngs=rngs, **kwargs),
    ]
  )


@pytest.mark.parametrize("form", convolution.FORMS)
def test_laid_out_layers_have_the_same_values_and_gradients(form, seed) -> None:
  rng = np.random.default_rng(seed)
  chain = tiny_model.fill(nnx.eval_shape(_chain), rng)
  x = tiny_model.normal(rng, 1, 2, *_FRAME, 6)
  memory = jax.tree.map(
    lambda m: tiny_model.normal(rng, *m.shape), chain.start(1, *_FRAME)
  )

  probe = tiny_model.normal(rng, 1, 2, *_FRAME, 4)

  def run(chain, x, memory, form):
    ready = vae.laid_out(chain, form) if form else chain
    y, after = ready(x, memory, first=False)
    return jnp.vdot(y, probe), (y, after)

  gradients = jax.jit(
    jax.grad(run, argnums=(0, 1, 2), has_aux=True), static_argnums=3
  )
  plain = gradients(chain, x, memory, "")
  found = gradients(chain, x, memory, form)
  for a, b in zip(*map(jax.tree.leaves, (found, plain)), strict=True):
    tolerances.assert_close(a, b, "float32_gradient")


def test_frames_decoded_side_by_side_equal_one_after_the_other(seed) -> None:
  rng = np.random.default_rng(seed)
  sizes = dict(multipliers=(1, 2), temporal=(True,))
  latents = tiny_model.normal(rng, 1, 4, *_FRAME, 4)
  found = {}
  for spare in (False, True):
    config = vae_coders.tiny_vae(
      convolution="volume", spare_memory=spare, **sizes
    )
    model = tiny_model.fill(vae.abstract(config), np.random.default_rng(seed))
    # One, then three: side by side only where memory is not spared.
    assert model.latents_at_once(3, form="volume") == (1 if spare else 3)
    assert model.latents_at_once(4, form="volume") == (1 if spare else 2)
    assert model.latents_at_once(3, form="sum") == 1
    found[spare] = jax.jit(
      lambda m, x: m.decode_unclipped(x, m.start(1, *_FRAME))
    )(model, latents)
  for a, b in zip(*map(jax.tree.leaves, found.values()), strict=True):
    tolerances.assert_close(a, b)


def test_other_forms_are_refused() -> None:
  with pytest.raises(ValueError, match="vae.convolution='fft' is unknown"):
    vae_coders.tiny_vae(convolution="fft")
