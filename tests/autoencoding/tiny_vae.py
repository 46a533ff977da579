"""A VAE of two resolutions that compiles in seconds, and clips for it."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from videomla_jax.models import vae as vae_lib
from videomla_jax.models import vae_coders

STRIDE = 2  # in time and in space


def config(**changes: object) -> vae_coders.VaeConfig:
  """Returns sizes of a VAE with strides 2 x 2 x 2."""
  values = dict(
    width=4,
    channels=3,
    multipliers=(1, 1),
    num_blocks=1,
    temporal=(True,),
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
  )
  return vae_coders.VaeConfig(**(values | changes))


def build(seed: int, **changes: object) -> vae_lib.WanVAE:
  """Returns such a VAE with random weights."""
  make = lambda: vae_lib.WanVAE(config(**changes), rngs=nnx.Rngs(seed))
  return jax.jit(make)()


def video(
  rng: np.random.Generator, size: int = 2, frames: int = 5
) -> jax.Array:
  """Returns clips of 8 x 8 pixels."""
  shape = (size, frames, 8, 8, 3)
  return jnp.asarray(rng.integers(0, 256, shape, dtype=np.uint8))
