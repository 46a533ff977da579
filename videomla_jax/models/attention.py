"""Self-attention, dense or latent behind one interface.

Self-attention has two steps, which training, rollout and given frames share:

  project(x)                    -> Entry, what the cache stores of these tokens
  attend(x, context, rotations) -> output, `context` being a list of entries of
                                   any frames, such as the cache and the chunk

Keys are stored without rotation; `attend` rotates them with the temporal
coordinates of the current window.
"""

import dataclasses
import math
from typing import NamedTuple

from einops import rearrange
from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32

from videomla_jax import sharding
from videomla_jax.models import cache
from videomla_jax.models import layers
from videomla_jax.ops import quantise
from videomla_jax.ops import rope
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import types
from videomla_jax.storage import plain_config

# Frequencies of the positional key, docs/method.md, section 3.1.
LADDERS = ("wan", "fresh")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
  """Kind and sizes of the self-attention of one layer.

  Attributes:
    kind: Name in `SELF_ATTENTION` at the end of this file.
    width: Model width E.
    num_heads: Heads N; a head has E / N channels.
    d_c: Channels of the content latent, which is cached (latent attention).
    d_rope: Channels of the shared positional key, which is cached (latent
      attention).
    d_q: Channels of the query latent, which is never cached (latent attention).
    rope_ladder: Frequencies of the positional key (latent attention): "wan"
      takes the highest of each axis of Wan's, as the paper does; "fresh" has a
      ladder of its own for the fewer channels, as the first code had.
    down_bias: Whether the projections to both latents have biases (latent
      attention), as some checkpoints have.
    form: Order of the products (latent attention), see `api.latent_attention`.
    implementation: Name in `api.IMPLEMENTATIONS`, or in `api.DENSE` for dense
      attention; None takes what `selection` says.
  """

  kind: str
  width: int
  num_heads: int
  d_c: int = 192
  d_rope: int = 32
  d_q: int = 768
  rope_ladder: str = "wan"
  down_bias: bool = False
  form: types.Form = "auto"
  implementation: str | None = None

  def __post_init__(self) -> None:
    if self.kind not in SELF_ATTENTION:
      raise ValueError(
        f"attention.kind={self.kind!r} is unknown; use one of "
        f"{sorted(SELF_ATTENTION)}."
      )
    sizes = ("width", "num_heads", "d_c", "d_rope", "d_q")
    plain_config.check_range(self, **dict.fromkeys(sizes, (1, 2**16)))
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
    self._check_ladder()
    table = api.DENSE if self.kind == "dense" else api.IMPLEMENTATIONS
    if self.implementation not in (None, *table):
      raise ValueError(
        f"attention.implementation={self.implementation!r} has no {self.kind} "
        f"attention; use one of {sorted(table)}, or None for the fastest."
      )

  def _check_ladder(self) -> None:
    if self.rope_ladder not in LADDERS:
      raise ValueError(
        f"attention.rope_ladder={self.rope_ladder!r} is unknown; use one of "
        f"{list(LADDERS)}."
      )
    for field, only in (("rope_ladder", "wan"), ("form", "auto")):
      given = getattr(self, field)
      if self.kind == "dense" and given != only:
        raise ValueError(
          f"attention.{field}={given!r} is of latent attention, but "
          f"kind='dense'; use {only!r}."
        )
    self.bands  # noqa: B018  Refuses sizes that the axes cannot share.

  @property
  def head_dim(self) -> int:
    """Channels D of one head."""
    return self.width // self.num_heads

  @property
  def d_nope(self) -> int:
    """Content channels of a latent-attention head, d_n."""
    return self.head_dim - self.d_rope

  @property
  def bands(self) -> rope.Bands:
    """Frequencies by which the positional channels are rotated."""
    if self.rope_ladder == "fresh":
      # Wan's own rule, for a head that has the positional channels only.
      return rope.wan_bands(self.d_rope)
    dim = self.head_dim if self.kind == "dense" else self.d_rope
    return rope.wan_bands(self.head_dim, rope_dim=dim)

  @property
  def cached_scalars(self) -> int:
    """Number of scalars that the cache holds per token and layer."""
    if self.kind == "dense":
      return 2 * self.width
    return self.d_c + self.d_rope


class Rotations(NamedTuple):
  """Rotations of queries and keys, shared by all layers of one pass.

  Attributes:
    query: Rotation of the query tokens.
    key: Rotation of the key tokens.
    visible: False for key frames that must not be seen.
  """

  query: rope.Rotation
  key: rope.Rotation
  visible: Bool[Array, "*B K"]


class DenseEntry(NamedTuple):
  """What dense attention caches: the keys and values of all heads.

  Attributes:
    key: Keys, normalised and not rotated.
    value: Values.
  """

  key: Float[Array, "B T P E"] | quantise.Quantised
  value: Float[Array, "B T P E"] | quantise.Quantised


class LatentEntry(NamedTuple):
  """What latent attention caches, shared by all heads.

  Attributes:
    content: Content latents, normalised.
    key_rope: Positional keys, not rotated.
  """

  content: Float[Array, "B T P d_c"] | quantise.Quantised
  key_rope: Float[Array, "B T P d_r"] | quantise.Quantised


class DenseSelfAttention(nnx.Module):
  """Wan's self-attention: RMSNorm over all heads, then 3D RoPE."""

  def __init__(
    self, config: AttentionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs
  ) -> None:
    self.config = config
    width = config.width
    self.query, self.key, self.value, self.out = (
      layers.linear(width, width, dtype=dtype, rngs=rngs) for _ in range(4)
    )
    self.query_norm = layers.RMSNorm(width)
    self.key_norm = layers.RMSNorm(width)

  def project(self, x: Float[Array, "B T P E"]) -> DenseEntry:
    """Returns what the cache stores of these tokens, 2 E scalars each."""
    return DenseEntry(self.key_norm(self.key(x)), self.value(x))

  def attend(
    self,
    x: Float[Array, "B T P E"],
    context: list[DenseEntry],
    rotations: Rotations,
  ) -> Float32[Array, "B T P E"]:
    """Attends from the tokens of `x` to the frames of `context`.

    Args:
      x: Tokens of the frames that are computed.
      context: Entries of the frames that are seen, in the order of `rotations`.
      rotations: Rotations of queries and keys in the current window.
    """
    heads, tokens = self.config.num_heads, x.shape[2]
    split = lambda y: rearrange(y, "B T P (N D) -> B T P N D", N=heads)
    query = split(self.query_norm(self.query(x)))
    keys, values = (
      [split(quantise.dequantise(y, x.dtype)) for y in pieces]
      for pieces in zip(*context, strict=True)
    )
    sizes = [k.shape[1] * tokens for k in keys]
    angles = [rope.by_frame(a, tokens) for a in rope.cut(rotations.key, sizes)]

    def run(
      query: Array,
      query_rotation: rope.Rotation,
      keys: list[Array],
      key_rotations: list[rope.Rotation],
      values: list[Array],
      visible: Array,
    ) -> Array:
      # Library kernels take one array. Keys that are rotated before they are
      # joined are written once.
      key = [
        rope.rotate_frames(k, a)
        for k, a in zip(keys, key_rotations, strict=True)
      ]
      out = api.dense_attention(
        rope.rotate_frames(query, query_rotation),
        jnp.concatenate(key, axis=1),
        rearrange(jnp.concatenate(values, axis=1), "B T P N D -> B (T P) N D"),
        visible,
        scale=1 / math.sqrt(self.config.head_dim),
        implementation=self.config.implementation,
      )
      return out.reshape(query.shape)

    with jax.named_scope("dense_attention"):
      out = sharding.per_device(
        run,
        ("queries", query),
        ("angles", rope.by_frame(rotations.query, tokens)),
        ("keys", keys),
        ("batch", angles),
        ("keys", values),
        ("batch", rotations.visible),
      )
    return layers.to_residual(self.out, out.reshape(x.shape))


class LatentSelfAttention(nnx.Module):
  """Multi-head latent attention, VideoMLA (arXiv:2605.30351), Eq. (1)-(7).

  Both latents pass an RMSNorm before their up-projections (appendix D.2), and
  the content latent is cached after it. Queries and the positional key have
  biases, since Wan's have. Content keys and values have none: a bias of keys
  cannot change a softmax, and one of values is a bias of the output projection.
  The latents have biases if `down_bias` says so.
  """

  def __init__(
    self, config: AttentionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs
  ) -> None:
    self.config = config
    width, heads = config.width, config.num_heads

    def linear(inputs: int, outputs: int, bias: bool) -> nnx.Linear:
      return layers.linear(inputs, outputs, dtype=dtype, rngs=rngs, bias=bias)

    self.w_dkv = linear(width, config.d_c, config.down_bias)
    self.w_kr = linear(width, config.d_rope, True)
    self.w_dq = linear(width, config.d_q, config.down_bias)
    self.w_uk = linear(config.d_c, heads * config.d_nope, False)
    self.w_uv = linear(config.d_c, heads * config.head_dim, False)
    self.w_uq = linear(config.d_q, heads * config.d_nope, True)
    self.w_qr = linear(config.d_q, heads * config.d_rope, True)
    self.w_o = linear(width, width, True)
    self.content_norm = layers.RMSNorm(config.d_c)
    self.query_norm = layers.RMSNorm(config.d_q)

  def project(self, x: Float[Array, "B T P E"]) -> LatentEntry:
    """Returns what the cache stores of these tokens, d_c + d_r scalars each."""
    return LatentEntry(self.content_norm(self.w_dkv(x)), self.w_kr(x))

  def attend(
    self,
    x: Float[Array, "B T P E"],
    context: list[LatentEntry],
    rotations: Rotations,
  ) -> Float32[Array, "B T P E"]:
    """Attends from the tokens of `x` to the frames of `context`.

    Args:
      x: Tokens of the frames that are computed.
      context: Entries of the frames that are seen, in the order of `rotations`.
      rotations: Rotations of queries and keys in the current window.
    """
    with jax.named_scope("query"):
      queries = self.queries(x)
    with jax.named_scope("latent_attention"):
      # Every device has all latents, 448 B per token, and its own queries.
      out = sharding.per_device(
        self._attend,
        ("queries", queries),
        ("angles", rope.by_frame(rotations.query, x.shape[2])),
        ("batch", (context, rotations.key, rotations.visible)),
        ("heads", self.up_projections(x.dtype)),
      )
    return layers.to_residual(self.w_o, out.reshape(x.shape))

  def queries(self, x: Float[Array, "B T P E"]) -> tuple[Array, Array]:
    """Returns content queries and positional ones, `[B, T, P, N, d]`."""
    heads = self.config.num_heads
    split = lambda y: rearrange(y, "B T P (N d) -> B T P N d", N=heads)
    q_latent = self.query_norm(self.w_dq(x))
    return split(self.w_uq(q_latent)), split(self.w_qr(q_latent))

  def _attend(
    self,
    queries: tuple[Array, Array],
    rotation: rope.Rotation,
    seen: tuple[list[LatentEntry], rope.Rotation, Array],
    up: types.UpProjections,
  ) -> Float[Array, "B T P N D"]:
    """Attends with the queries and heads that one device has."""
    content, q_rope = queries
    out = api.latent_attention(
      types.Queries(
        rearrange(content, "B T P N D -> B (T P) N D"),
        rope.rotate_frames(q_rope, rotation),
      ),
      self.keys(*seen, dtype=content.dtype),
      up,
      form=self.config.form,
      implementation=self.config.implementation,
    )
    return out.reshape(*content.shape[:-1], -1)

  def keys(
    self,
    context: list[LatentEntry],
    rotation: rope.Rotation,
    visible: Bool[Array, "B K"],
    *,
    dtype: DTypeLike,
  ) -> list[types.Keys]:
    """Returns the rotated keys of each entry of the context.

    Entries stay apart, since joining them would copy the cache.
    """
    segments, frame = [], 0
    sizes = [math.prod(entry.content.shape[1:3]) for entry in context]
    for entry, angles in zip(context, rope.cut(rotation, sizes), strict=True):
      frames = entry.content.shape[1]
      with jax.named_scope("rotate_keys"):
        # Positional keys leave eight bits here and content only in the kernel:
        # they are rotated anew in every window, and their angles have more
        # bytes than the keys themselves.
        k_rope = quantise.dequantise(entry.key_rope, dtype)
        k_rope = cache.joined_frames(k_rope)[:, :, None]
        k_rope = rope.rotate(k_rope, angles)[:, :, 0]
      # Kernels read eight-bit content themselves and scale the product.
      content = entry.content
      if not isinstance(content, quantise.Quantised):
        content = content.astype(dtype)
      content, seen = (
        jax.tree.map(cache.joined_frames, content),
        visible[:, frame:][:, :frames],
      )
      segments.append(types.Keys(content, k_rope, seen))
      frame += frames
    return segments

  def up_projections(self, dtype: DTypeLike) -> types.UpProjections:
    """Returns W_uk and W_uv by head, in the dtype of a product."""
    heads = self.config.num_heads
    key, value = (
      rearrange(w.kernel[...].astype(dtype), "c (N d) -> c N d", N=heads)
      for w in (self.w_uk, self.w_uv)
    )
    return types.UpProjections(key, value)


SELF_ATTENTION = {"dense": DenseSelfAttention, "latent": LatentSelfAttention}
