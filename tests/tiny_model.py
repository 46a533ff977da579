"""A DiT so small that a test compiles it in a second, with random weights."""

import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from videomla_jax.models import attention
from videomla_jax.models import wan
from videomla_jax.models import wan_config

FRAME = (4, 2, 2)  # H, W, C: two tokens
TOKENS = 2
TEXT = (3, 8)  # M, channels


_ATTENTION = dict(width=24, num_heads=2, d_c=10, d_rope=6, d_q=14)


def config(kind: str, **kwargs: Any) -> wan_config.WanConfig:
  """Returns the sizes; every kind of dimension has its own number.

  Args:
    kind: Of self-attention.
    **kwargs: Other fields of the config; `sizes` are those of attention.
  """
  given = _ATTENTION | kwargs.pop("sizes", {})
  sizes = attention.AttentionConfig(kind=kind, **given)
  values = dict(
    num_layers=2,
    ffn_width=150,  # in three parts
    channels=FRAME[2],
    freq_dim=8,
    text_dim=TEXT[1],
    text_tokens=TEXT[0],
    dtype="float32",
  )
  return wan_config.WanConfig(attention=sizes, **(values | kwargs))


def fill(model: nnx.Module, rng: np.random.Generator) -> nnx.Module:
  """Gives every parameter random values, those that start at 0 or 1 too."""

  def values(path, leaf):
    normal = rng.standard_normal(leaf.shape)
    name = jax.tree_util.keystr(path)
    if "gain" in name:
      return jnp.asarray(1 + 0.2 * normal, leaf.dtype)
    if "kernel" in name:
      return jnp.asarray(normal / math.sqrt(leaf.shape[-2]), leaf.dtype)
    return jnp.asarray(0.3 * normal, leaf.dtype)

  return jax.tree_util.tree_map_with_path(values, model)


@functools.cache  # One tree structure per config, so jit compiles once.
def abstract(config: wan_config.WanConfig) -> wan.WanDiT:
  """Returns the network with shapes in place of arrays."""
  return nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))


def build(kind: str, rng: np.random.Generator, **kwargs: Any) -> wan.WanDiT:
  """Returns a network with random weights."""
  return fill(abstract(config(kind, **kwargs)), rng)


def normal(rng: np.random.Generator, *shape: int) -> jax.Array:
  """Returns float32 Gaussian numbers."""
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)
