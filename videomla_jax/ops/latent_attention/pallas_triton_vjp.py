"""Gradient of the Pallas Triton kernel, memory linear in queries plus keys.

FlashAttention-2 (arXiv:2307.08691), from the saved logarithm of the sum L:

  p  = 2^(s - L),  dp = do Vᵀ,  ds = p (dp - Σ do o) scale
  dV = pᵀ do,      dK = dsᵀ Q,  dQ = ds K

One kernel visits all keys for a tile of rows and makes dQ. Another visits all
rows for a tile of keys and makes dK and dV; the positional key, which the heads
share, gets a gradient from every head, and these are summed afterwards. Keys
that no query may see get exact zeros.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import pallas_triton_forward as kernel
from videomla_jax.ops.latent_attention import triton_config
from videomla_jax.ops.latent_attention import types


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows[T]:
  """What both kernels read of the query rows.

  T is an array outside of the kernels, a `BlockSpec` where they are called, and
  a `jax.Ref` inside of them.

  Attributes:
    content: Content queries, `[B R H d]`.
    rope: Rotated positional queries, if there are any.
    d_out: Gradient of the output, `[B R H D]`.
    log_sum: Base-2 logarithm of the sum of each row, `[B H R]`.
    delta: Σ do o of each row, `[B H R]`.
  """

  content: T
  rope: T | None
  d_out: T
  log_sum: T
  delta: T


class Tile(NamedTuple):
  """A tile of `Rows` that was loaded; content and rope are the query."""

  query: kernel.Parts
  d_out: kernel.Parts
  log_sum: Float32[Array, "rows"]
  delta: Float32[Array, "rows"]


def gradients(
  queries: types.Queries,
  segments: tuple[types.KeyValue, ...],
  out: Float[Array, "B R H D"],
  log_sum: Float32[Array, "B H R"],
  d_out: Float[Array, "B R H D"],
  *,
  scale: float,
  config: triton_config.Config,
  interpret: bool = False,
) -> tuple[types.Queries, tuple[types.KeyValue, ...]]:
  """Computes the gradients of queries and segments.

  Args:
    queries: Queries of the forward pass.
    segments: Keys and values of the forward pass.
    out: Output of the forward pass.
    log_sum: Base-2 logarithm of the sum of each row of the forward pass.
    d_out: Gradient of the output.
    scale: Logit multiplier, positive.
    config: Sizes of the tiles of both kernels.
    interpret: Whether to run on a CPU.

  Returns:
    Gradients in the places of what they belong to; flags have None.
  """
  delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
  rows = Rows(
    content=queries.content,
    rope=queries.rope,
    d_out=d_out,
    log_sum=log_sum,
    delta=delta.swapaxes(1, 2),
  )
  d_queries = _query_gradient(
    rows, segments, config=config, scale=scale, interpret=interpret
  )
  d_segments = tuple(
    _key_gradient(rows, s, config=config, scale=scale, interpret=interpret)
    for s in segments
  )
  return d_queries, d_segments


def _row_specs(rows: Rows[Array]) -> Rows[pl.BlockSpec | None]:
  """Gives a program all rows of its head."""
  length = rows.delta.shape[2]
  line = pl.BlockSpec((None, None, length), lambda b, h, i: (b, h, 0))
  return Rows(
    content=kernel.rows_of(rows.content),
    rope=kernel.rows_of(rows.rope),
    d_out=kernel.rows_of(rows.d_out),
    log_sum=line,
    delta=line,
  )


def _load_rows(refs: Rows[jax.Ref], start: Int[Array, ""], count: int) -> Tile:
  rows = (start, count)
  query = kernel.load_parts(refs.content, *rows)
  query += kernel.load_parts(refs.rope, *rows)
  return Tile(
    query,
    kernel.load_parts(refs.d_out, *rows),
    kernel.load_line(refs.log_sum, *rows),
    kernel.load_line(refs.delta, *rows),
  )


def _score_gradient(
  tile: Tile,
  key: kernel.Parts,
  values: kernel.Parts,
  seen: Bool[Array, "#rows keys"],
  scale: float,
) -> tuple[Float32[Array, "rows keys"], Float32[Array, "rows keys"]]:
  """Computes probabilities, and gradients of scores, of a tile of both.

  Args:
    tile: Query rows.
    key: Keys in parts, content before positions.
    values: Values in parts.
    seen: False where a pair must not count.
    scale: Logit multiplier.
  """
  s = kernel.score(tile.query, key) * (scale * kernel.LOG2_E)
  p = jnp.where(seen, jnp.exp2(s - tile.log_sum[:, None]), 0.0)
  dp = kernel.score(tile.d_out, values)
  return p, p * (dp - tile.delta[:, None]) * scale


def _store(
  refs: Sequence[jax.Ref], start: Int[Array, ""], gradients: kernel.Parts
) -> None:
  """Stores the parts of several gradients, one ref after the other."""
  for ref in refs:
    count = len(triton_config.parts(ref.shape[1]))
    kernel.store_parts(ref, start, gradients[:count])
    gradients = gradients[count:]


def _zeros_like(parts: kernel.Parts) -> tuple[Array, ...]:
  return tuple(jnp.zeros(x.shape, jnp.float32) for x in parts)


def _query_kernel(
  rows: Rows[jax.Ref],
  segments: tuple[kernel.Segment[jax.Ref], ...],
  *outs: jax.Ref,
  config: triton_config.Config,
  scale: float,
) -> None:
  """Makes dQ of one tile of rows of one head."""
  first_row = pl.program_id(2) * config.rows
  tile = _load_rows(rows, first_row, config.rows)

  def visit(
    j: Int[Array, ""],
    d_query: tuple[Array, ...],
    segment: kernel.Segment[jax.Ref],
  ) -> tuple[Array, ...]:
    keys = (segment.start[j], config.keys)
    k_content = kernel.load_parts(segment.content, *keys)
    k = k_content + kernel.load_parts(segment.rope, *keys)
    v = k_content
    if segment.value is not None:
      v = kernel.load_parts(segment.value, *keys)
    in_block = (jnp.arange(config.keys) < segment.count[j])[None, :]
    _, ds = _score_gradient(tile, k, v, in_block, scale)
    return tuple(
      a + kernel.dot(ds.astype(b.dtype), b)
      for a, b in zip(d_query, k, strict=True)
    )

  d_query = _zeros_like(tile.query)
  for segment in segments:
    body = functools.partial(visit, segment=segment)
    d_query = jax.lax.fori_loop(0, segment.num_blocks[0], body, d_query)
  _store(outs, first_row, d_query)


def _query_gradient(
  rows: Rows[Array],
  segments: tuple[types.KeyValue, ...],
  *,
  config: triton_config.Config,
  scale: float,
  interpret: bool,
) -> types.Queries:
  content, rope = rows.content, rows.rope
  batch, length, heads, _ = content.shape
  keys, key_specs = kernel.segment_inputs(segments, block=config.keys)
  outs = [
    jax.ShapeDtypeStruct(q.shape, q.dtype)
    for q in (content, rope)
    if q is not None
  ]
  d_content, *d_rope = pl.pallas_call(
    functools.partial(_query_kernel, config=config, scale=scale),
    grid=(batch, heads, pl.cdiv(length, config.rows)),
    in_specs=[_row_specs(rows), key_specs],
    out_specs=[kernel.rows_of(x) for x in outs],
    out_shape=outs,
    compiler_params=kernel.compiler_params(config),
    interpret=interpret,
    name="latent_attention_query_gradient",
  )(rows, keys)
  nothing: Any = None  # dense attention has no positional part
  return types.Queries(d_content, d_rope[0] if d_rope else nothing)


def _key_kernel(
  rows: Rows[jax.Ref],
  valid: jax.Ref,
  content: jax.Ref,
  rope: jax.Ref | None,
  value: jax.Ref | None,
  *outs: jax.Ref,
  validity_block: int,
  config: triton_config.Config,
  scale: float,
) -> None:
  """Makes dK and dV of one tile of keys of one head.

  Args:
    rows: All query rows of the head.
    valid: Flags of the validity blocks.
    content: Content part of the keys.
    rope: Positional part of the keys, if there is one.
    value: Values, or None where the content is the value.
    *outs: Gradients of content, positional part and values, of those there are.
    validity_block: Keys per flag.
    config: Sizes of the tiles.
    scale: Logit multiplier.
  """
  num_keys, num_rows = content.shape[0], rows.content.shape[0]
  keys = (pl.program_id(2) * config.keys, config.keys)
  k_content = kernel.load_parts(content, *keys)
  k = k_content + kernel.load_parts(rope, *keys)
  v = k_content if value is None else kernel.load_parts(value, *keys)
  # Past the end are no flags; what a tile computes there is never stored.
  key = jnp.minimum(keys[0] + jnp.arange(config.keys), num_keys - 1)
  # Flags are looked up per key, since a tile may begin inside of a block.
  seen = plgpu.load(valid.at[key // validity_block]) != 0

  def visit(
    i: Int[Array, ""], carry: tuple[tuple[Array, ...], tuple[Array, ...]]
  ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    d_key, d_value = carry
    row = i * config.rows + jnp.arange(config.rows)
    inside = (row < num_rows)[:, None] & seen[None, :]
    tile = _load_rows(rows, i * config.rows, config.rows)
    p, ds = _score_gradient(tile, k, v, inside, scale)
    d_key = tuple(
      a + kernel.dot(ds.astype(q.dtype).T, q)
      for a, q in zip(d_key, tile.query, strict=True)
    )
    d_value = tuple(
      a + kernel.dot(p.astype(g.dtype).T, g)
      for a, g in zip(d_value, tile.d_out, strict=True)
    )
    return d_key, d_value

  d_key, d_value = jax.lax.fori_loop(
    0, pl.cdiv(num_rows, config.rows), visit, (_zeros_like(k), _zeros_like(v))
  )
  if value is None:  # The content is key and value.
    joint = tuple(a + b for a, b in zip(d_key[: len(v)], d_value, strict=True))
    _store(outs, keys[0], joint + d_key[len(v) :])
  else:
    _store(outs, keys[0], d_key + d_value)


def _key_gradient(
  rows: Rows[Array],
  segment: types.KeyValue,
  *,
  config: triton_config.Config,
  scale: float,
  interpret: bool,
) -> types.KeyValue:
  content, rope, value = segment.content, segment.rope, segment.value
  assert not isinstance(content, quantise.Quantised)
  batch, num_keys, heads, _ = content.shape
  outs = [jax.ShapeDtypeStruct(content.shape, content.dtype)]
  if rope is not None:
    shape = (batch, num_keys, heads, rope.shape[-1])
    # The gradients of the heads are summed, so none is rounded before.
    outs.append(jax.ShapeDtypeStruct(shape, jnp.float32))
  if value is not None:
    outs.append(jax.ShapeDtypeStruct(value.shape, value.dtype))
  valid = segment.valid.astype(jnp.int32)
  d_content, *rest = pl.pallas_call(
    functools.partial(
      _key_kernel,
      validity_block=segment.validity_block,
      config=config,
      scale=scale,
    ),
    grid=(batch, heads, pl.cdiv(num_keys, config.keys)),
    in_specs=[
      _row_specs(rows),
      kernel.tokens_of(valid),
      kernel.rows_of(content),
      kernel.tokens_of(rope),
      kernel.rows_of(value),
    ],
    out_specs=[kernel.rows_of(x) for x in outs],
    out_shape=outs,
    compiler_params=kernel.compiler_params(config),
    interpret=interpret,
    name="latent_attention_key_gradient",
  )(rows, valid, content, rope, value)
  nothing: Any = None  # flags have no gradient
  return segment._replace(
    content=d_content,
    # All heads share the positional key, so their gradients are added.
    rope=None if rope is None else rest[0].sum(2).astype(rope.dtype),
    value=None if value is None else rest[-1],
    valid=nothing,
  )
