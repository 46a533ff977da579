"""Forward kernel of the Pallas Triton flash attention.

One program takes a tile of query rows of one head through the blocks of every
segment (`blocks.table_of`). With scores s in base 2, running maximum m, sum l
and output o (Milakov & Gimelshein, arXiv:1805.02867):

  s = (q_c k_cᵀ + q_r k_rᵀ) scale log2 e
  m' = max(m, max s),  p = 2^(s - m'),  α = 2^(m - m')
  l' = α l + Σ p,      o' = α o + p V

The positional key is shared by all heads and is never copied to them; where it
has no channels (dense attention) there is one product. Where the value is the
content itself (absorbed form) it is loaded once.

Widths are taken in parts that are powers of two (`triton_config.parts`). Rows
past the end are read as zeros and not written; keys past the end of their run
are masked.

Latents in eight bits, c = a x with a scale a per key, are loaded as bytes and
cast, which is exact: |x| < 2^8 or 4 bits of mantissa. The scale multiplies
columns of scores and of probabilities in float32,

  s = (q_c xᵀ) a + q_r k_rᵀ,      o' = α o + (p a) x,

64 numbers per row and block, not 192, and x is rounded nowhere.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Shaped

from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import blocks
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import triton_config
from videomla_jax.ops.latent_attention import types

LOG2_E = math.log2(math.e)


def dot(
  a: Shaped[Array, "m k"], b: Shaped[Array, "k n"]
) -> Float32[Array, "m n"]:
  """Multiplies with float32 accumulation; float32 inputs keep their bits."""
  exact = a.dtype == jnp.float32
  return jnp.dot(
    a,
    b,
    preferred_element_type=jnp.float32,
    precision=jax.lax.Precision.HIGHEST if exact else None,
  )


# Query rows or keys of a tile, as one array for each part of the channels.
Loaded = list[Shaped[Array, "_ _"]]
Parts = Loaded | tuple[Shaped[Array, "_ _"], ...]
# Running maximum, running sum, and the running output in parts.
Carry = tuple[Float32[Array, "rows"], Float32[Array, "rows"], tuple[Array, ...]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment[T]:
  """What a kernel that visits keys reads of one segment.

  T is an array outside of the kernel, a `BlockSpec` where the kernel is called,
  and a `jax.Ref` inside of it.

  Attributes:
    start: First key of each block.
    count: Number of keys of each block.
    num_blocks: Number of blocks to visit.
    content: Content part of the keys.
    scale: Scale of the content of each key, where that is in eight bits.
    rope: Positional part, if there is one.
    value: Values, or None where the content is the value.
  """

  start: T
  count: T
  num_blocks: T
  content: T
  scale: T | None
  rope: T | None
  value: T | None


def _inside(
  ref: jax.Ref, start: Int[Array, ""] | int, count: int
) -> Bool[Array, "rows"]:
  """Marks the rows of a tile that lie before the end of the ref."""
  return start + jnp.arange(count) < ref.shape[0]


def load_line(
  ref: jax.Ref, start: Int[Array, ""] | int, count: int
) -> Shaped[Array, "rows"]:
  """Loads `count` numbers of a `[S]` ref; zeros past the end."""
  inside = _inside(ref, start, count)
  return plgpu.load(ref.at[pl.ds(start, count)], mask=inside, other=0.0)


def load_parts(
  ref: jax.Ref | None, start: Int[Array, ""] | int, count: int
) -> Loaded:
  """Loads `count` rows of a `[S, d]` ref in parts; zeros past the end.

  Args:
    ref: Where to load from; None gives no parts.
    start: First row.
    count: Number of rows.
  """
  if ref is None:
    return []
  inside = _inside(ref, start, count)[:, None]
  return [
    plgpu.load(
      ref.at[pl.ds(start, count), pl.ds(column, width)], mask=inside, other=0.0
    )
    for column, width in triton_config.parts(ref.shape[1])
  ]


def store_parts(
  ref: jax.Ref, start: Int[Array, ""] | int, values: Parts
) -> None:
  """Stores rows that come in parts; rows past the end are not written."""
  inside = _inside(ref, start, values[0].shape[0])[:, None]
  for (column, width), value in zip(
    triton_config.parts(ref.shape[1]), values, strict=True
  ):
    plgpu.store(
      ref.at[pl.ds(start, value.shape[0]), pl.ds(column, width)],
      value.astype(ref.dtype),
      mask=inside,
    )


def score(q: Parts, k: Parts) -> Float32[Array, "rows keys"]:
  """Sums q kᵀ over the parts of the channels."""
  products = (dot(a, b.T) for a, b in zip(q, k, strict=True))
  return sum(products)  # type: ignore[return-value]


def _forward_kernel(
  content: jax.Ref,
  rope: jax.Ref | None,
  segments: Sequence[Segment[jax.Ref]],
  out_ref: jax.Ref,
  log_sum_ref: jax.Ref,
  *,
  config: triton_config.Config,
  scale: float,
) -> None:
  """Takes one tile of query rows of one head through all keys."""
  rows = (pl.program_id(2) * config.rows, config.rows)
  query = load_parts(content, *rows), load_parts(rope, *rows)
  # Outputs are accumulated in float32, in parts like the values.
  widths = [size for _, size in triton_config.parts(out_ref.shape[1])]
  carry = (
    jnp.full((config.rows,), reference.MASKED, jnp.float32),
    jnp.zeros((config.rows,), jnp.float32),
    tuple(jnp.zeros((config.rows, w), jnp.float32) for w in widths),
  )
  for segment in segments:
    body = functools.partial(
      _visit, query=query, segment=segment, config=config, scale=scale
    )
    carry = jax.lax.fori_loop(0, segment.num_blocks[0], body, carry)
  m, l, o = carry
  store_parts(out_ref, rows[0], [part / l[:, None] for part in o])
  plgpu.store(
    log_sum_ref.at[pl.ds(*rows)],
    m + jnp.log2(l),
    mask=_inside(log_sum_ref, *rows),
  )


def _visit(
  j: Int[Array, ""],
  carry: Carry,
  *,
  query: tuple[Loaded, Loaded],
  segment: Segment[jax.Ref],
  config: triton_config.Config,
  scale: float,
) -> Carry:
  """Adds block `j` of a segment to the online softmax.

  Args:
    j: Index of the block.
    carry: Running maximum, sum and output.
    query: Content part and positional part of the queries.
    segment: Keys and values.
    config: Sizes of the tiles.
    scale: Logit multiplier.
  """
  m, l, o = carry
  keys = (segment.start[j], config.keys)
  key_content = load_parts(segment.content, *keys)
  key_rope = load_parts(segment.rope, *keys)
  key_scale = None
  if segment.scale is None:
    s = score(query[0] + query[1], key_content + key_rope)
  else:
    key_content = [k.astype(query[0][0].dtype) for k in key_content]
    key_scale = load_line(segment.scale, *keys).astype(jnp.float32)[None, :]
    s = score(query[0], key_content) * key_scale + score(query[1], key_rope)
  s *= scale * LOG2_E
  in_block = (jnp.arange(config.keys) < segment.count[j])[None, :]
  s = jnp.where(in_block, s, reference.MASKED)
  m_new = jnp.maximum(m, s.max(axis=1))
  p = jnp.exp2(s - m_new[:, None])
  alpha = jnp.exp2(m - m_new)
  weight = p if key_scale is None else p * key_scale
  values = key_content
  if segment.value is not None:
    values = load_parts(segment.value, *keys)
  o = tuple(
    alpha[:, None] * part + dot(weight.astype(v.dtype), v)
    for part, v in zip(o, values, strict=True)
  )
  return m_new, alpha * l + p.sum(axis=1), o


def rows_of(x: Array | jax.ShapeDtypeStruct | None) -> pl.BlockSpec | None:
  """Gives a program all rows of one head of `[B R H d]`.

  Axes of the grid are rows of the batch, heads, and tiles.
  """
  if x is None:
    return None
  _, rows, heads, width = x.shape
  return pl.BlockSpec(
    (None, rows, None, width), lambda b, h, i: (b, 0, h if heads > 1 else 0, 0)
  )


def tokens_of(x: Array | jax.ShapeDtypeStruct | None) -> pl.BlockSpec | None:
  """Gives a program all tokens of `[B S ...]`, whatever its head."""
  if x is None:
    return None
  rest = x.shape[1:]
  return pl.BlockSpec((None, *rest), lambda b, h, i: (b, *(0 for _ in rest)))


def compiler_params(config: triton_config.Config) -> plgpu.CompilerParams:
  """Passes warps and stages on to Triton's compiler."""
  return plgpu.CompilerParams(
    num_warps=config.num_warps, num_stages=config.num_stages
  )


def segment_inputs(
  segments: tuple[types.KeyValue, ...], *, block: int
) -> tuple[
  tuple[Segment[Array], ...], tuple[Segment[pl.BlockSpec | None], ...]
]:
  """Prepares segments for a kernel that visits their keys block by block.

  Args:
    segments: Keys and values.
    block: Keys per block.

  Returns:
    The arrays that the kernel reads, and the block spec of each of them.
  """
  arrays = tuple(_segment_input(s, block) for s in segments)
  return arrays, tuple(_segment_specs(a) for a in arrays)


def _segment_input(s: types.KeyValue, block: int) -> Segment[Array]:
  table = blocks.table_of(s.valid, validity_block=s.validity_block, block=block)
  if isinstance(s.content, quantise.Quantised):
    content, scale = s.content.values, s.content.scale[:, :, 0, 0]
  else:
    content, scale = s.content, None
  return Segment(
    start=table.start,
    count=table.count,
    num_blocks=table.num_blocks[:, None],
    content=content,
    scale=scale,
    rope=s.rope,
    value=s.value,
  )


def _segment_specs(arrays: Segment[Array]) -> Segment[pl.BlockSpec | None]:
  return Segment(
    start=tokens_of(arrays.start),
    count=tokens_of(arrays.count),
    num_blocks=tokens_of(arrays.num_blocks),
    content=rows_of(arrays.content),
    scale=tokens_of(arrays.scale),
    rope=tokens_of(arrays.rope),
    value=rows_of(arrays.value),
  )


def forward(
  queries: types.Queries,
  segments: tuple[types.KeyValue, ...],
  *,
  scale: float,
  config: triton_config.Config,
  interpret: bool,
) -> tuple[Float[Array, "B R H D"], Float32[Array, "B H R"]]:
  """Runs the kernel on all rows and heads.

  Args:
    queries: Content queries and rotated positional queries.
    segments: Keys and values.
    scale: Logit multiplier, positive.
    config: Sizes of the tiles.
    interpret: Whether to run on a CPU.

  Returns:
    The value of every query row and head, and the base-2 logarithm of the sum
    of 2^s of each row.
  """
  batch, rows, heads, _ = queries.content.shape
  keys, key_specs = segment_inputs(segments, block=config.keys)
  width = segments[0].values.shape[-1]
  out = jax.ShapeDtypeStruct((batch, rows, heads, width), queries.content.dtype)
  log_sum = jax.ShapeDtypeStruct((batch, heads, rows), jnp.float32)
  return pl.pallas_call(
    functools.partial(_forward_kernel, config=config, scale=scale),
    grid=(batch, heads, pl.cdiv(rows, config.rows)),
    in_specs=[*(rows_of(q) for q in queries), key_specs],
    out_specs=[
      rows_of(out),
      pl.BlockSpec((None, None, rows), lambda b, h, i: (b, h, 0)),
    ],
    out_shape=[out, log_sum],
    compiler_params=compiler_params(config),
    interpret=interpret,
    name="latent_attention",
  )(*queries, keys)
