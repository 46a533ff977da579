"""The small world's text encoder: one learned vector per word."""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

PADDING = 0


class WordEncoder(nnx.Module):
  """Embeds word ids; padding gives exact zeros, as Wan's text padding does."""

  def __init__(self, vocabulary: int, features: int, *, rngs: nnx.Rngs):
    shape = (vocabulary, features)
    self.table = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))

  def __call__(self, tokens: Int[Array, "B M"]) -> Float[Array, "B M E"]:
    """Looks the words up; a product with one-hot rows has a cheap gradient."""
    one_hot = jax.nn.one_hot(tokens, self.table.shape[0], dtype=jnp.float32)
    known = (tokens != PADDING)[..., None]
    return jnp.where(known, one_hot @ self.table[...], 0.0)
