"""The UMT5 encoder, which turns prompts into what Wan's DiT reads.

docs/method.md, section 5. Text tokens attend to each other without scaling and
with a learned bias per relative distance; every layer has a table of its own.
Norms and softmax are float32. Keys of padding are masked, and positions of
padding are set to zero after the last layer.
"""

import dataclasses
from typing import Any

from einops import rearrange
from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int
import numpy as np

from videomla_jax.models import tokenizer as tokenizer_lib
from videomla_jax.storage import plain_config

_EPSILON = 1e-6  # under the root of the norms, as released


@dataclasses.dataclass(frozen=True, kw_only=True)
class Umt5Config(plain_config.PlainConfig):
  """Describes a text encoder by its sizes.

  Attributes:
    vocabulary: Number of token ids.
    width: Channels E of a token.
    num_heads: Attention heads N.
    head_dim: Channels D of a head.
    ffn_width: Channels F of the gated feed-forward.
    num_layers: Number of blocks.
    num_buckets: Rows of a table of relative distances, half for each sign.
    max_distance: Distance in tokens from which all share a bucket.
    dtype: Type of the matrix products.
    param_dtype: Type of the weights; the released ones are bfloat16.
  """

  title = "UMT5 config"

  vocabulary: int
  width: int
  num_heads: int
  head_dim: int
  ffn_width: int
  num_layers: int
  num_buckets: int = 32
  max_distance: int = 128
  dtype: str = "bfloat16"
  param_dtype: str = "bfloat16"

  def __post_init__(self) -> None:
    sizes = ("width", "num_heads", "head_dim", "ffn_width", "num_buckets")
    plain_config.check_range(
      self,
      vocabulary=(1, 2**20),
      num_layers=(1, 512),
      max_distance=(1, 2**20),
      **dict.fromkeys(sizes, (1, 2**16)),
    )
    plain_config.check_dtype(self, "dtype", "param_dtype")


def umt5_xxl(**changes: Any) -> Umt5Config:
  """Returns the encoder of Wan2.1, which has 5,680,910,336 parameters.

  Args:
    **changes: Fields to replace.
  """
  values = dict(
    vocabulary=256384,
    width=4096,
    num_heads=64,
    head_dim=64,
    ffn_width=10240,
    num_layers=24,
  )
  return Umt5Config(**(values | changes))


def tiny_umt5(**changes: Any) -> Umt5Config:
  """Returns the same layers with few channels, to try the machinery.

  Args:
    **changes: Fields to replace.
  """
  values = dict(
    vocabulary=512,
    width=32,
    num_heads=4,
    head_dim=8,
    ffn_width=48,
    num_layers=2,
    dtype="float32",
    param_dtype="float32",
  )
  return umt5_xxl(**(values | changes))


def relative_buckets(
  distance: Int[np.ndarray, "..."], *, num_buckets: int, max_distance: int
) -> Int[np.ndarray, "..."]:
  """Returns the row of the bias table for each relative distance.

  docs/method.md, Eq. (5.3). Half of the rows are for later keys. Within a half,
  each short distance has its row and longer ones share rows, logarithmically.

  Args:
    distance: Key position minus query position, in tokens.
    num_buckets: Rows of the table.
    max_distance: Distance from which all share the last row of a half.
  """
  half = num_buckets // 2
  exact = half // 2  # distances that have a row for themselves
  size = np.abs(distance)
  # The original computes in float32, which decides where rows begin.
  log = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
  log = log / np.float32(np.log(max_distance / exact)) * (half - exact)
  shared = np.minimum(exact + log.astype(np.int64), half - 1)
  return np.where(size < exact, size, shared) + half * (distance > 0)


class Norm(nnx.Module):
  """Divides by the root mean square in float32 and multiplies by a gain."""

  def __init__(self, features: int, *, param_dtype: DTypeLike) -> None:
    self.gain = nnx.Param(jnp.ones((features,), param_dtype))

  def __call__(self, x: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
    """Returns `x` normalised over its last axis, in its own type."""
    x32 = x.astype(jnp.float32)
    square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
    normed = x32 * jax.lax.rsqrt(square + _EPSILON)
    # The released code casts before the gain; after it, bits would differ.
    return normed.astype(x.dtype) * self.gain[...].astype(x.dtype)


def _linear(
  inputs: int, outputs: int, config: Umt5Config, rngs: nnx.Rngs
) -> nnx.Linear:
  return nnx.Linear(
    inputs,
    outputs,
    use_bias=False,
    dtype=jnp.dtype(config.dtype),
    param_dtype=jnp.dtype(config.param_dtype),
    rngs=rngs,
  )


class Attention(nnx.Module):
  """Self-attention with a bias per relative distance.

  docs/method.md, Eq. (5.2).
  """

  def __init__(self, config: Umt5Config, *, rngs: nnx.Rngs) -> None:
    self.config = config
    inner = config.num_heads * config.head_dim
    self.query, self.key, self.value = (
      _linear(config.width, inner, config, rngs) for _ in range(3)
    )
    self.out = _linear(inner, config.width, config, rngs)
    shape = (config.num_buckets, config.num_heads)
    table = jax.random.normal(rngs.params(), shape)
    self.distance = nnx.Param(table.astype(config.param_dtype))

  def bias(self, length: int) -> Float32[Array, "N M M"]:
    """Returns the bias of every query position (rows) and key position.

    Args:
      length: Positions M of a padded text.
    """
    # Positions are NumPy, so the buckets are constants of the program.
    position = np.arange(length)
    rows = relative_buckets(
      position[None] - position[:, None],
      num_buckets=self.config.num_buckets,
      max_distance=self.config.max_distance,
    )
    return jnp.moveaxis(self.distance[...].astype(jnp.float32)[rows], -1, 0)

  def __call__(
    self, x: Float[Array, "B M E"], valid: Bool[Array, "B M"]
  ) -> Float[Array, "B M E"]:
    """Returns what each position attends to among the valid ones."""
    query, key, value = (
      rearrange(w(x), "B M (N D) -> B N M D", N=self.config.num_heads)
      for w in (self.query, self.key, self.value)
    )
    score = jnp.einsum(
      "BNMD,BNSD->BNMS", query, key, preferred_element_type=jnp.float32
    )
    score = score + self.bias(x.shape[1])
    # It is the lowest number and not minus infinity, with which a row of
    # padding alone would be 0 / 0.
    lowest = jnp.finfo(jnp.float32).min
    score = jnp.where(valid[:, None, None], score, lowest)
    weight = jax.nn.softmax(score, axis=-1).astype(value.dtype)
    out = jnp.einsum("BNMS,BNSD->BNMD", weight, value)
    return self.out(rearrange(out, "B N M D -> B M (N D)"))


class GatedMLP(nnx.Module):
  """Multiplies two linear branches, one of them through a GELU."""

  def __init__(self, config: Umt5Config, *, rngs: nnx.Rngs) -> None:
    width, ffn = config.width, config.ffn_width
    self.gate = _linear(width, ffn, config, rngs)
    self.into = _linear(width, ffn, config, rngs)
    self.out = _linear(ffn, width, config, rngs)

  def __call__(self, x: Float[Array, "B M E"]) -> Float[Array, "B M E"]:
    """Returns the output of the feed-forward."""
    gate = jax.nn.gelu(self.gate(x), approximate=True)
    return self.out(self.into(x) * gate)


class Block(nnx.Module):
  """Adds attention and feed-forward, each behind a norm, to its input.

  docs/method.md, Eq. (5.1).
  """

  def __init__(self, config: Umt5Config, *, rngs: nnx.Rngs) -> None:
    dtype = jnp.dtype(config.param_dtype)
    self.attention_norm = Norm(config.width, param_dtype=dtype)
    self.attention = Attention(config, rngs=rngs)
    self.ffn_norm = Norm(config.width, param_dtype=dtype)
    self.ffn = GatedMLP(config, rngs=rngs)

  def __call__(
    self, x: Float[Array, "B M E"], valid: Bool[Array, "B M"]
  ) -> Float[Array, "B M E"]:
    """Returns the tokens after the block."""
    x = x + self.attention(self.attention_norm(x), valid)
    return x + self.ffn(self.ffn_norm(x))


class Umt5Encoder(nnx.Module):
  """Turns token ids into embeddings."""

  def __init__(self, config: Umt5Config, *, rngs: nnx.Rngs) -> None:
    self.config = config
    dtype = jnp.dtype(config.param_dtype)
    shape = (config.vocabulary, config.width)
    table = jax.random.normal(rngs.params(), shape, dtype)
    self.tokens = nnx.Param(table)
    stack = nnx.split_rngs(splits=config.num_layers)(
      nnx.vmap(lambda r: Block(config, rngs=r), in_axes=0, out_axes=0)
    )
    self.blocks = stack(rngs)
    self.norm = Norm(config.width, param_dtype=dtype)

  def __call__(
    self, ids: Int[Array, "B M"], valid: Bool[Array, "B M"]
  ) -> Float[Array, "B M E"]:
    """Returns the embedding of every position, padding included.

    Args:
      ids: Token ids, zero-padded.
      valid: Whether a token is real; `</s>` is.
    """
    x = self.tokens[...][ids].astype(self.config.dtype)
    x, _ = jax.lax.scan(
      lambda x, block: (block(x, valid), None), x, self.blocks
    )
    return self.norm(x)

  def embed(
    self, ids: Int[Array, "B M"], lengths: Int[Array, "B"]
  ) -> Float32[Array, "B M E"]:
    """Returns what Wan's DiT reads: embeddings, and zeros for padding.

    Args:
      ids: Token ids, zero-padded.
      lengths: Number of real tokens in each row, `</s>` included.
    """
    valid = jnp.arange(ids.shape[1]) < lengths[:, None]
    x = self(ids, valid).astype(jnp.float32)
    # Cross-attention has no mask: it sees padding, which is zero in Wan.
    return jnp.where(valid[..., None], x, 0)


def abstract(config: Umt5Config) -> Umt5Encoder:
  """Returns the network with shapes in place of arrays."""
  return nnx.eval_shape(lambda: Umt5Encoder(config, rngs=nnx.Rngs(0)))


@jax.jit
def _embed(
  encoder: Umt5Encoder, ids: Int[Array, "B M"], lengths: Int[Array, "B"]
) -> Float32[Array, "B M E"]:
  return encoder.embed(ids, lengths)


def embed_texts(
  encoder: Umt5Encoder,
  tokenizer: tokenizer_lib.Tokenizer,
  texts: list[str],
) -> Float32[Array, "B M E"]:
  """Returns embeddings of texts, zero for padding.

  Texts are embedded one by one, which needs one program for any number of them
  and the memory of one.

  Args:
    encoder: The network.
    tokenizer: The vocabulary that the network was trained with.
    texts: Prompts, as the user wrote them.

  Raises:
    ValueError: If the tokenizer has ids that the encoder lacks.
  """
  if tokenizer.vocabulary > encoder.config.vocabulary:
    raise ValueError(
      f"tokenizer has {tokenizer.vocabulary} ids but the encoder "
      f"{encoder.config.vocabulary}; use the tokenizer it was trained with."
    )
  ids, lengths = tokenizer(texts)
  each = zip(ids[:, None], lengths[:, None], strict=True)
  return jnp.concatenate([_embed(encoder, *row) for row in each])
