"""Attention from video tokens to text tokens, docs/method.md, section 2.8."""

import math

from einops import rearrange
from flax import nnx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from videomla_jax import sharding
from videomla_jax.models import layers
from videomla_jax.ops.latent_attention import api


class CrossAttention(nnx.Module):
  """Attention from video tokens to text tokens: RMSNorm, no RoPE, no mask."""

  def __init__(
    self, width: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs
  ) -> None:
    self.num_heads = num_heads
    self.query, self.key, self.value, self.out = (
      layers.linear(width, width, dtype=dtype, rngs=rngs) for _ in range(4)
    )
    self.query_norm = layers.RMSNorm(width)
    self.key_norm = layers.RMSNorm(width)

  def __call__(
    self, x: Float[Array, "B G T P E"], text: Float[Array, "B M E"]
  ) -> Float[Array, "B G T P E"]:
    """Attends from every video token to every text token.

    Padding is seen as well: its embedding is that of zeros, as in Wan.
    """
    query = self.query_norm(self.query(x))
    key = self.key_norm(self.key(text))
    query, key, value = (
      y.reshape(*y.shape[:-1], self.num_heads, -1)
      for y in (query, key, self.value(text))
    )

    def run(query: Array, key: Array, value: Array) -> Array:
      out = api.dense_attention(
        rearrange(query, "B G T P N D -> B (G T P) N D"),
        key,
        value,
        jnp.ones((key.shape[0], 1), bool),
        scale=1 / math.sqrt(query.shape[-1]),
      )
      return out.reshape(query.shape)

    out = sharding.per_device(
      run, ("chunk_queries", query), ("text_keys", key), ("text_keys", value)
    )
    return self.out(out.reshape(x.shape))
