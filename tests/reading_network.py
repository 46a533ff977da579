"""A network that reads everything it is given, in a few operations."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from videomla_jax.models import wan
from videomla_jax.models import wan_config


class _Attention(nnx.Module):
  """Stores a few channels of each token."""

  def __init__(self) -> None:
    self.scale = nnx.Param(jnp.ones((1, 3)))  # The first axis is of blocks.

  def project(self, x: Any) -> Any:
    return x[..., :3] * self.scale[...].astype(x.dtype)


class _Block(nnx.Module):
  """The part of a block that caches ask for."""

  def __init__(self) -> None:
    self.self_attention = _Attention()


class Network(wan.WanDiT):
  """A network that adds up all that it sees, in a few operations."""

  def __init__(self, config: wan_config.WanConfig, *, rngs: nnx.Rngs) -> None:
    self.config = config
    self.blocks = _Block()

  def velocity_and_entries(
    self,
    latents,
    timestep,
    text,
    positions,
    *,
    context_of,
    history=None,
    keep=slice(None),
  ) -> tuple[Any, Any]:
    tokens = self.grid(latents).tokens
    x = latents.mean((3, 4, 5)).astype(self.config.dtype)
    x = jnp.broadcast_to(x[..., None, None], (*x.shape, tokens, 3))
    block, past = jax.tree.map(lambda p: p[0], (self.blocks, history))
    own = block.self_attention.project(x)
    seen = context_of(own, past), positions, timestep
    total = text.mean((1, 2))[:, None]
    for leaf in jax.tree.leaves(seen):
      # Which entries are seen counts, and not only how many.
      weights = jnp.arange(1.0, leaf.shape[2] + 1)
      total = total + jnp.einsum("bgk...,k->bg", leaf * 1.0, weights)
    out = latents + total[..., None, None, None, None].astype(jnp.float32)
    return out[:, keep], jax.tree.map(lambda e: e[None], own)

  def velocity_and_history(
    self, *args, context_of, history=None, store=wan.read_only
  ) -> tuple[Any, Any]:
    out, own = self.velocity_and_entries(
      *args, context_of=context_of, history=history
    )
    own = jax.tree.map(lambda e: e[0], own)
    return out, store(history, own, 0)
