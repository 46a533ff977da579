"""One block of the Wan DiT, and what all blocks of a pass see."""

from collections.abc import Callable
import dataclasses
import math
from typing import NamedTuple

from einops import rearrange
from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, PyTree

from videomla_jax import sharding
from videomla_jax.models import attention
from videomla_jax.models import feed_forward
from videomla_jax.models import layers
from videomla_jax.models import wan_config
from videomla_jax.ops.latent_attention import api

# (own entries [B G T P ...], the layer's history [B slots P ...]) -> the
# entries that each chunk attends to, a list whose frames [B G . P ...] add up
# to the K of `Positions`.
ContextOf = Callable[[PyTree, PyTree], list[PyTree]]

# Modulated tokens -> what the block adds to the residual tokens.
FeedForward = Callable[[Array], Array]

# Kernels of attention take these weights themselves, and not their products.
_READ_BY_ATTENTION = ("w_uk", "w_uv")


class TextKeys(NamedTuple):
  """Keys and values of the text, of one layer or of all, `[layers, ...]`.

  Where layers lie apart, each field is a tuple with an array per layer.

  Attributes:
    key: Keys of every head, normalised.
    value: Values of every head.
  """

  key: Float[Array, "*layers B M N D"] | tuple[Array, ...]
  value: Float[Array, "*layers B M N D"] | tuple[Array, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
  """What all blocks see in one pass beside the tokens.

  Attributes:
    time: Six projections of each frame's timestep, `[B, G, T, 6, E]`.
    text: Embedded text tokens, `[B, M, E]`, or what a layer makes of them.
    rotations: Rotations of queries and keys, leaves `[B, G, tokens, ...]`.
    context_of: What each chunk attends to.
  """

  time: Float32[Array, "B G T 6 E"]
  text: Float[Array, "B M E"] | TextKeys
  rotations: attention.Rotations
  context_of: ContextOf


def _merge(x: Array) -> Array:
  """Joins rows and chunks: `[B, G, ...]` to `[B G, ...]`."""
  return x.reshape(-1, *x.shape[2:])


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

  def _by_head(self, x: Float[Array, "*B E"]) -> Float[Array, "*B N D"]:
    """Splits channels into heads."""
    return x.reshape(*x.shape[:-1], self.num_heads, -1)

  def keys(self, text: Float[Array, "B M E"]) -> TextKeys:
    """Makes keys and values of embedded text.

    Padding is seen as well: its embedding is that of zeros, as in Wan.
    """
    key = self.key_norm(self.key(text))
    return TextKeys(self._by_head(key), self._by_head(self.value(text)))

  def __call__(
    self, x: Float[Array, "B G T P E"], text: Float[Array, "B M E"] | TextKeys
  ) -> Float32[Array, "B G T P E"]:
    """Attends from every video token to every text token."""
    query = self._by_head(self.query_norm(self.query(x)))
    key, value = text if isinstance(text, TextKeys) else self.keys(text)

    def run(query: Array, key: Array, value: Array) -> Array:
      with jax.named_scope("text_attention"):
        out = api.dense_attention(
          rearrange(query, "B G T P N D -> B (G T P) N D"),
          key,
          value,
          None,
          scale=1 / math.sqrt(query.shape[-1]),
        )
      return out.reshape(query.shape)

    out = sharding.per_device(
      run, ("chunk_queries", query), ("text_keys", key), ("text_keys", value)
    )
    return layers.to_residual(self.out, out.reshape(x.shape))


class Block(nnx.Module):
  """One block of the network, docs/method.md, section 2.5."""

  def __init__(self, config: wan_config.WanConfig, *, rngs: nnx.Rngs) -> None:
    dtype, width = jnp.dtype(config.dtype), config.width
    self.dtype, self.spare_memory = dtype, config.spare_memory
    kind = attention.SELF_ATTENTION[config.attention.kind]
    self.self_attention = kind(config.attention, dtype=dtype, rngs=rngs)
    self.cross_norm = layers.AffineLayerNorm(width)
    self.cross_attention = CrossAttention(
      width, config.attention.num_heads, dtype=dtype, rngs=rngs
    )
    sizes = (width, config.ffn_width, width)
    self.ffn = feed_forward.MLP(
      sizes, feed_forward.gelu, hidden="hidden", dtype=dtype, rngs=rngs
    )
    noise = jax.random.normal(rngs.params(), (6, width), jnp.float32)
    # Six vectors: shift, scale and gate, of self-attention and feed-forward.
    self.modulation = nnx.Param(noise / width**0.5)
    if config.products:
      use_float8(self, config.products)

  def _modulation(
    self, time: Float32[Array, "B G T 6 E"]
  ) -> Float32[Array, "B G T 1 6 E"]:
    """Adds the block's own modulation; the axis of one stands for tokens."""
    return (time + self.modulation[...])[..., None, :, :]

  def _settle(self, x: Array) -> Array:
    """Makes XLA write a sum in place of its first term, to spare memory.

    Without the barrier XLA keeps both terms alive until the end of the block
    and adds them again for each reader: 15 MB more per term at 480p, and 72 MB
    less to read and write.
    """
    return jax.lax.optimization_barrier(x) if self.spare_memory else x

  def attention_input(
    self, x: Float32[Array, "B G T P E"], time: Float32[Array, "B G T 6 E"]
  ) -> Float[Array, "B G T P E"]:
    """Returns what self-attention sees of the residual tokens."""
    m = self._modulation(time)
    a = layers.layer_norm(x) * (1 + m[..., 1, :]) + m[..., 0, :]
    return a.astype(self.dtype)

  def __call__(
    self,
    x: Float32[Array, "B G T P E"],
    seen: Pass,
    history: PyTree = None,
    *,
    keep: slice = slice(None),
    ffn: FeedForward | None = None,
  ) -> tuple[Float32[Array, "B g T P E"], PyTree]:
    """Applies the block to the tokens of chunks side by side.

    Args:
      x: Residual tokens.
      seen: Time, text, rotations and context of the pass.
      history: This layer's part of the cache, leaves `[B, slots, P, ...]`.
      keep: Chunks whose output is wanted; entries are made for all.
      ffn: A feed-forward to apply in place of `self.ffn`.

    Returns:
      The residual tokens of the kept chunks and the entries of all tokens,
      leaves `[B, G, T, P, ...]`.
    """
    m = self._modulation(seen.time)
    a = self.attention_input(x, seen.time)
    # Chunks meet only in `context_of`; to attention itself they are rows.
    own = self.self_attention.project(_merge(a))
    own = jax.tree.map(lambda y: y.reshape(*a.shape[:2], *y.shape[1:]), own)
    # Dropped chunks still make entries, which kept ones may see.
    context = (seen.context_of(own, history), seen.rotations)
    x, a, m, context = jax.tree.map(lambda y: y[:, keep], (x, a, m, context))
    # Residual sums are float32; products have the dtype of the config.
    with jax.named_scope("self_attention"):
      out = self.self_attention.attend(
        _merge(a), *jax.tree.map(_merge, context)
      )
      x = self._settle(x + out.reshape(x.shape) * m[..., 2, :])
    with jax.named_scope("cross_attention"):
      tokens = self.cross_norm(x).astype(self.dtype)
      x = self._settle(x + self.cross_attention(tokens, seen.text))
    with jax.named_scope("ffn"):
      b = layers.layer_norm(x) * (1 + m[..., 4, :]) + m[..., 3, :]
      out = (ffn or self.ffn.to_residual)(b.astype(self.dtype))
      x = x + out * m[..., 5, :]
    return sharding.constrain(x, "residual"), own


def use_float8(blocks: Block, products: str) -> None:
  """Makes the projections of blocks float8, in place.

  Args:
    blocks: A block, or a stack of all.
    products: A name in `quantise.PRODUCTS`, not empty.
  """
  layers.use_float8(blocks, products, but=_READ_BY_ATTENTION)
