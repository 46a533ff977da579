"""Self-attention, dense or latent behind one interface, and cross-attention.

A self-attention layer works in two steps, so that training, rollout and
prefill share one path:

  project(x)               -> Entry, what the cache stores of these tokens
  attend(x, context, view) -> output, `context` being a list of entries of any
                              frames: the ring and the own chunk, say

Keys are stored without rotation; `attend` rotates them with the temporal
coordinates of the current window.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

from einops import rearrange
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from videomla_jax import sharding
from videomla_jax.models import layers
from videomla_jax.ops import quantise
from videomla_jax.ops import rope
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import types


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
  """Self-attention of one layer.

  Attributes:
    kind: Row of the table at the end of this file.
    width: Model width E.
    num_heads: Heads N; the head dim is E / N.
    d_c: Content latent, cached (latent attention only).
    d_rope: Shared positional key, cached (latent attention only).
    d_q: Query latent, never cached (latent attention only).
    form: Arrangement of latent attention, see `api.latent_attention`.
    implementation: Name in the table of `api`, or None for the best.
  """

  kind: Literal["dense", "latent"]
  width: int
  num_heads: int
  d_c: int = 192
  d_rope: int = 32
  d_q: int = 768
  form: types.Form = "auto"
  implementation: str | None = None

  def __post_init__(self):
    if self.kind not in SELF_ATTENTION:
      raise ValueError(
        f"attention.kind={self.kind!r} is unknown; use one of "
        f"{sorted(SELF_ATTENTION)}."
      )
    if self.width % self.num_heads:
      raise ValueError(
        f"attention.num_heads={self.num_heads} must divide "
        f"width={self.width}; choose another number of heads."
      )
    if self.kind == "latent" and self.d_rope >= self.head_dim:
      raise ValueError(
        f"attention.d_rope={self.d_rope} must be below the head dim "
        f"{self.head_dim}, since content takes the rest of the head."
      )

  @property
  def head_dim(self) -> int:
    """D, channels of one head."""
    return self.width // self.num_heads

  @property
  def d_nope(self) -> int:
    """d_n, content channels of a latent-attention head."""
    return self.head_dim - self.d_rope

  @property
  def bands(self) -> rope.Bands:
    """Frequencies of the rotated channels."""
    dim = self.head_dim if self.kind == "dense" else self.d_rope
    return rope.wan_bands(self.head_dim, rope_dim=dim)

  @property
  def cached_scalars(self) -> int:
    """Scalars that the cache holds per token and layer."""
    if self.kind == "dense":
      return 2 * self.width
    return self.d_c + self.d_rope


class View(NamedTuple):
  """Where queries and keys stand, shared by all layers of one pass.

  Attributes:
    query: Rotation of the query tokens.
    key: Rotation of the key tokens.
    key_valid: False for frames that must not be seen.
  """

  query: rope.Rotation
  key: rope.Rotation
  key_valid: Bool[Array, "*B K"]


class DenseEntry(NamedTuple):
  """Per-head keys, normalised and not rotated, and values."""

  key: Float[Array, "B T P E"] | quantise.Quantised
  value: Float[Array, "B T P E"] | quantise.Quantised


class LatentEntry(NamedTuple):
  """Normalised content latents and shared keys, not rotated."""

  content: Float[Array, "B T P d_c"] | quantise.Quantised
  key_rope: Float[Array, "B T P d_r"] | quantise.Quantised


def _by_frame(angles: rope.Rotation, tokens: int) -> rope.Rotation:
  """Angles with frames and tokens apart: `[B, T, P, pairs]`."""
  return jax.tree.map(
    lambda a: rearrange(a, "B (T P) i -> B T P i", P=tokens), angles
  )


def _flat(x: Num[Array, "B T P ..."]) -> Num[Array, "B S ..."]:
  """Joins frames and tokens."""
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _rotate(x: Float[Array, "B T P N D"], angles: rope.Rotation) -> Array:
  """Rotated tokens, frames and tokens joined: `[B, S, N, D]`."""
  return rope.rotate(_flat(x), jax.tree.map(_flat, angles))


class DenseSelfAttention(nnx.Module):
  """Wan's self-attention: RMSNorm over all heads, then 3D RoPE."""

  def __init__(self, config: AttentionConfig, *, dtype, rngs: nnx.Rngs):
    self.config = config
    width = config.width
    self.query, self.key, self.value, self.out = (
      layers.linear(width, width, dtype=dtype, rngs=rngs) for _ in range(4)
    )
    self.query_norm = layers.RMSNorm(width)
    self.key_norm = layers.RMSNorm(width)

  def project(self, x: Float[Array, "B T P E"]) -> DenseEntry:
    """What the cache stores of these tokens: 2 E scalars each."""
    return DenseEntry(self.key_norm(self.key(x)), self.value(x))

  def attend(
    self, x: Float[Array, "B T P E"], context: list[DenseEntry], view: View
  ) -> Float[Array, "B T P E"]:
    """Attends from the tokens of `x` to the frames of `context`."""
    heads = self.config.num_heads
    query = self.query_norm(self.query(x))
    key, value = (
      jnp.concatenate([quantise.dequantise(y, x.dtype) for y in parts], axis=1)
      for parts in zip(*context, strict=True)
    )
    query, key, value = (
      rearrange(y, "B T P (N D) -> B T P N D", N=heads)
      for y in (query, key, value)
    )
    tokens, scale = x.shape[2], 1 / math.sqrt(self.config.head_dim)

    def run(query, turn, key, key_turn, value, valid):
      out = api.dense_attention(
        _rotate(query, turn),
        _rotate(key, key_turn),
        _flat(value),
        valid,
        scale=scale,
      )
      return out.reshape(query.shape)

    out = sharding.per_device(
      run,
      ("queries", query),
      ("angles", _by_frame(view.query, tokens)),
      ("keys", key),
      ("batch", _by_frame(view.key, tokens)),
      ("keys", value),
      ("batch", view.key_valid),
    )
    return self.out(out.reshape(x.shape))


class LatentSelfAttention(nnx.Module):
  """Multi-head latent attention, VideoMLA (arXiv:2605.30351), Eq. (1)-(7).

  Both latents pass an RMSNorm before their up-projections (appendix D.2); the
  content latent is cached after it. Queries and the positional key have
  biases, since Wan's have; a bias of content keys cannot change a softmax and
  one of values is a bias of the output projection, so neither exists.
  """

  def __init__(self, config: AttentionConfig, *, dtype, rngs: nnx.Rngs):
    self.config = config
    width, heads = config.width, config.num_heads

    def linear(inputs, outputs, bias):
      return layers.linear(inputs, outputs, dtype=dtype, rngs=rngs, bias=bias)

    self.w_dkv = linear(width, config.d_c, False)
    self.w_kr = linear(width, config.d_rope, True)
    self.w_dq = linear(width, config.d_q, False)
    self.w_uk = linear(config.d_c, heads * config.d_nope, False)
    self.w_uv = linear(config.d_c, heads * config.head_dim, False)
    self.w_uq = linear(config.d_q, heads * config.d_nope, True)
    self.w_qr = linear(config.d_q, heads * config.d_rope, True)
    self.w_o = linear(width, width, True)
    self.content_norm = layers.RMSNorm(config.d_c)
    self.query_norm = layers.RMSNorm(config.d_q)

  def project(self, x: Float[Array, "B T P E"]) -> LatentEntry:
    """What the cache stores of these tokens: d_c + d_r scalars each."""
    return LatentEntry(self.content_norm(self.w_dkv(x)), self.w_kr(x))

  def attend(
    self, x: Float[Array, "B T P E"], context: list[LatentEntry], view: View
  ) -> Float[Array, "B T P E"]:
    """Attends from the tokens of `x` to the frames of `context`."""
    heads = self.config.num_heads
    with jax.named_scope("query"):
      q_latent = self.query_norm(self.w_dq(x))
      content, q_rope = (
        rearrange(w(q_latent), "B T P (N d) -> B T P N d", N=heads)
        for w in (self.w_uq, self.w_qr)
      )
    with jax.named_scope("latent_attention"):
      # Every device has all latents, which are small, and its own queries.
      out = sharding.per_device(
        self._attend,
        ("queries", (content, q_rope)),
        ("angles", _by_frame(view.query, x.shape[2])),
        ("batch", (context, view.key, view.key_valid)),
        ("heads", self._up_projections(x.dtype)),
      )
    return self.w_o(out.reshape(x.shape))

  def _attend(self, queries, turn, seen, up) -> Float[Array, "B T P N D"]:
    """Attention of some queries and heads."""
    content, q_rope = queries
    out = api.latent_attention(
      types.Queries(_flat(content), _rotate(q_rope, turn)),
      self._segments(*seen, content.dtype),
      up,
      form=self.config.form,
      implementation=self.config.implementation,
    )
    return out.reshape(*content.shape[:-1], -1)

  def _segments(self, context, angles, valid, dtype) -> list[types.Keys]:
    """Keys of each part of the context, rotated; nothing is joined."""
    segments, frame = [], 0
    for entry in context:
      frames, tokens = entry.content.shape[1:3]
      part = slice(frame * tokens, (frame + frames) * tokens)
      with jax.named_scope("rotate_keys"):
        # Out of eight bits here, content in the kernel: positions are rotated
        # anew in every window, and angles have more bytes than these keys.
        k_rope = quantise.dequantise(entry.key_rope, dtype)
        k_rope = rearrange(k_rope, "B T P r -> B (T P) 1 r")
        turn = jax.tree.map(lambda a, part=part: a[:, part], angles)
        k_rope = rope.rotate(k_rope, turn)[:, :, 0]
      content = entry.content
      if not isinstance(content, quantise.Quantised):
        content = content.astype(dtype)
      segments.append(
        types.Keys(
          jax.tree.map(_flat, content), k_rope, valid[:, frame : frame + frames]
        )
      )
      frame += frames
    return segments

  def _up_projections(self, dtype) -> types.UpProjections:
    heads = self.config.num_heads
    key, value = (
      rearrange(w.kernel[...].astype(dtype), "c (N d) -> c N d", N=heads)
      for w in (self.w_uk, self.w_uv)
    )
    return types.UpProjections(key, value)


class CrossAttention(nnx.Module):
  """Attention from video tokens to text tokens: RMSNorm, no RoPE, no mask."""

  def __init__(self, width: int, num_heads: int, *, dtype, rngs: nnx.Rngs):
    self.num_heads = num_heads
    self.query, self.key, self.value, self.out = (
      layers.linear(width, width, dtype=dtype, rngs=rngs) for _ in range(4)
    )
    self.query_norm = layers.RMSNorm(width)
    self.key_norm = layers.RMSNorm(width)

  def __call__(
    self, x: Float[Array, "B G T P E"], text: Float[Array, "B M E"]
  ) -> Float[Array, "B G T P E"]:
    """Attends from every video token to every text token, padding included."""
    query = self.query_norm(self.query(x))
    key = self.key_norm(self.key(text))
    query, key, value = (
      y.reshape(*y.shape[:-1], self.num_heads, -1)
      for y in (query, key, self.value(text))
    )

    def run(query, key, value):
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


SELF_ATTENTION = {"dense": DenseSelfAttention, "latent": LatentSelfAttention}
