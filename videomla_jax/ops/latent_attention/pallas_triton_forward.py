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

Triton's arrays have powers of two as sizes, so widths are taken in parts:
96 = 64 + 32, 192 = 128 + 64. Rows past the end are read as zeros and not
written; keys past the end of their run are masked.

Latents in eight bits, c = a x with a scale a per key, are loaded as bytes and
cast, which is exact: |x| < 2^8 or 4 bits of mantissa. The scale multiplies
columns of scores and of probabilities in float32,

  s = (q_c xᵀ) a + q_r k_rᵀ,      o' = α o + (p a) x,

64 numbers per row and block, not 192, and x is rounded nowhere.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import blocks
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import specs

LOG2_E = math.log2(math.e)
MIN_PART = 16  # the shortest contraction of a Triton product


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How work is cut.

  Attributes:
    rows: Query rows per program.
    keys: Keys per block.
    num_warps: Warps of a program.
    num_stages: Blocks of keys in flight.
  """

  rows: int = 128
  keys: int = 64
  num_warps: int = 8
  num_stages: int = 2


def config_of(content: int, value: int) -> Config:
  """Block sizes for a head's widths.

  128 rows and 64 keys on 8 warps leave 137 registers (expanded) and 145
  (absorbed, d_c = 192) without spills on sm_100a; 4 warps spill.
  """
  if max(content, value) <= 192:
    return Config()
  if max(content, value) <= 256:  # twice the accumulator of 128
    return Config(rows=64)
  # 512 float32 columns of output leave room for few rows and keys.
  return Config(rows=32, keys=32, num_stages=1)


def parts(
  width: int, *, name: str = "pallas_triton"
) -> tuple[tuple[int, int], ...]:
  """Offsets and sizes of the powers of two that add up to a width.

  Args:
    width: Channels.
    name: Of the kernel, for the error.

  Raises:
    NotImplementedError: If a part would be shorter than 16.
  """
  found, offset = [], 0
  for bit in reversed(range(width.bit_length())):
    if width & (1 << bit):
      found.append((offset, 1 << bit))
      offset += 1 << bit
  if not found or found[-1][1] < MIN_PART:
    raise NotImplementedError(
      f"{name}: width {width} is no sum of powers of two from 16 on"
    )
  return tuple(found)


def dot(a: Array, b: Array) -> Array:
  """A product with float32 accumulation; float32 inputs keep their bits."""
  exact = a.dtype == jnp.float32
  return jnp.dot(
    a,
    b,
    preferred_element_type=jnp.float32,
    precision=jax.lax.Precision.HIGHEST if exact else None,
  )


class Segment(NamedTuple):
  """What kernels that walk over keys read: arrays, their specs, or refs.

  Attributes:
    start: First key of each block.
    count: Keys of each block.
    num_blocks: Blocks to visit.
    content: Content part of the keys.
    scale: Of each key's content, where that is in eight bits.
    rope: Positional part, if there is one.
    value: Values, or None where the content is the value.
  """

  start: Any
  count: Any
  num_blocks: Any
  content: Any
  scale: Any | None
  rope: Any | None
  value: Any | None


def _inside(ref, start, count):
  return start + jnp.arange(count) < ref.shape[0]


def load_line(ref, start, count):
  """Loads `count` numbers of a `[S]` ref; zeros past the end."""
  inside = _inside(ref, start, count)
  return plgpu.load(ref.at[pl.ds(start, count)], mask=inside, other=0.0)


def load_parts(ref, start, count):
  """Loads `count` rows of a `[S, d]` ref as parts; zeros past the end."""
  if ref is None:
    return []
  inside = _inside(ref, start, count)[:, None]
  return [
    plgpu.load(
      ref.at[pl.ds(start, count), pl.ds(column, width)], mask=inside, other=0.0
    )
    for column, width in parts(ref.shape[1])
  ]


def store_parts(ref, start, values):
  """Stores rows of parts, up to the end of the ref."""
  inside = _inside(ref, start, values[0].shape[0])[:, None]
  for (column, width), value in zip(parts(ref.shape[1]), values, strict=True):
    plgpu.store(
      ref.at[pl.ds(start, value.shape[0]), pl.ds(column, width)],
      value.astype(ref.dtype),
      mask=inside,
    )


def score(q, k):
  """Σ over parts of q kᵀ."""
  return sum(dot(a, b.T) for a, b in zip(q, k, strict=True))


def _forward_kernel(
  content, rope, segments, out_ref, log_sum_ref, *, config, scale
):
  rows = (pl.program_id(2) * config.rows, config.rows)
  query = load_parts(content, *rows), load_parts(rope, *rows)
  widths = [size for _, size in parts(out_ref.shape[1])]
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


def _visit(j, carry, *, query, segment, config, scale):
  """One block of keys."""
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
  own = (jnp.arange(config.keys) < segment.count[j])[None, :]
  s = jnp.where(own, s, reference.MASKED)
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
  """All rows of one head of `[B R H d]`; heads are the second grid axis."""
  if x is None:
    return None
  _, rows, heads, width = x.shape
  return pl.BlockSpec(
    (None, rows, None, width), lambda b, h, i: (b, 0, h if heads > 1 else 0, 0)
  )


def tokens_of(x: Array | jax.ShapeDtypeStruct | None) -> pl.BlockSpec | None:
  """All rows of one stream of `[B S ...]`, whatever the head."""
  if x is None:
    return None
  rest = x.shape[1:]
  return pl.BlockSpec((None, *rest), lambda b, h, i: (b, *(0 for _ in rest)))


def compiler_params(config: Config) -> plgpu.CompilerParams:
  """Warps and stages for the compiler."""
  return plgpu.CompilerParams(
    num_warps=config.num_warps, num_stages=config.num_stages
  )


def segment_inputs(
  segments: tuple[forms.KeyValue, ...], *, block: int
) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
  """What kernels that walk over keys read, and the specs of it.

  Args:
    segments: Keys and values.
    block: Keys per block.
  """
  arrays = tuple(_segment_input(s, block) for s in segments)
  return arrays, tuple(_segment_specs(a) for a in arrays)


def _segment_input(s: forms.KeyValue, block: int) -> Segment:
  table = blocks.table_of(s.valid, granule=s.granule, block=block)
  content, scale = s.content, None
  if isinstance(s.content, quantise.Quantised):
    content, scale = s.content.values, s.content.scale[:, :, 0, 0]
  return Segment(
    start=table.start,
    count=table.count,
    num_blocks=table.num_blocks[:, None],
    content=content,
    scale=scale,
    rope=s.rope,
    value=s.value,
  )


def _segment_specs(arrays: Segment) -> Segment:
  heads = ("content", "value")
  return Segment(
    **{
      name: rows_of(x) if name in heads else tokens_of(x)
      for name, x in arrays._asdict().items()
    }
  )


def forward(
  queries: specs.Queries,
  segments: tuple[forms.KeyValue, ...],
  *,
  scale: float,
  config: Config,
  interpret: bool,
) -> tuple[Float[Array, "B R H D"], Float32[Array, "B H R"]]:
  """Runs the kernel.

  Returns:
    Output and the base-2 logarithm of the sum of 2^s of each row.
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
