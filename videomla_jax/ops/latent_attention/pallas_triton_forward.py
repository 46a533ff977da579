"""Forward kernel of the Pallas Triton flash attention.

One program takes a tile of query rows of one head through the blocks of every
segment (`blocks.table_of`). With scores s in base 2, running maximum m, sum l
and output o (Milakov & Gimelshein, arXiv:1805.02867):

  s = (q_c k_cᵀ + q_r k_rᵀ) scale log2 e
  m' = max(m, max s),  p = 2^(s - m'),  α = 2^(m - m')
  l' = α l + Σ p,      o' = α o + p V

The positional key is shared by all heads and is never copied to them; where
the value is the content itself (absorbed form) it is loaded once.

Triton's arrays have powers of two as sizes, so widths are taken in parts:
96 = 64 + 32, 192 = 128 + 64. Rows past the end are read as zeros and not
written; keys past the end of their run are masked.
"""

import dataclasses
import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

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


def _inside(ref, start, count):
  return start + jnp.arange(count) < ref.shape[0]


def load_line(ref, start, count):
  """Loads `count` numbers of a `[S]` ref; zeros past the end."""
  inside = _inside(ref, start, count)
  return plgpu.load(ref.at[pl.ds(start, count)], mask=inside, other=0.0)


def load_parts(ref, start, count):
  """Loads `count` rows of a `[S, d]` ref as parts; zeros past the end."""
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


def _forward_kernel(*refs, num_segments, shared, config, scale):
  content, rope, *rest = refs
  per_segment = 5 if shared else 6
  inputs = rest[: num_segments * per_segment]
  out_ref, log_sum_ref = rest[num_segments * per_segment :]
  rows = (pl.program_id(2) * config.rows, config.rows)
  query = load_parts(content, *rows) + load_parts(rope, *rows)
  widths = [size for _, size in parts(out_ref.shape[1])]
  carry = (
    jnp.full((config.rows,), reference.MASKED, jnp.float32),
    jnp.zeros((config.rows,), jnp.float32),
    tuple(jnp.zeros((config.rows, w), jnp.float32) for w in widths),
  )
  for i in range(num_segments):
    segment = inputs[i * per_segment : (i + 1) * per_segment]
    body = functools.partial(
      _visit, query=query, segment=segment, config=config, scale=scale
    )
    num_blocks = segment[2][0]
    carry = jax.lax.fori_loop(0, num_blocks, body, carry)
  m, l, o = carry
  store_parts(out_ref, rows[0], [part / l[:, None] for part in o])
  plgpu.store(
    log_sum_ref.at[pl.ds(*rows)],
    m + jnp.log2(l),
    mask=_inside(log_sum_ref, *rows),
  )


def _visit(j, carry, *, query, segment, config, scale):
  """One block of keys."""
  start_ref, count_ref, _, content, rope, *value = segment
  m, l, o = carry
  keys = (start_ref[j], config.keys)
  key_content = load_parts(content, *keys)
  s = score(query, key_content + load_parts(rope, *keys)) * (scale * LOG2_E)
  own = (jnp.arange(config.keys) < count_ref[j])[None, :]
  s = jnp.where(own, s, reference.MASKED)
  m_new = jnp.maximum(m, s.max(axis=1))
  p = jnp.exp2(s - m_new[:, None])
  alpha = jnp.exp2(m - m_new)
  values = load_parts(value[0], *keys) if value else key_content
  o = tuple(
    alpha[:, None] * part + dot(p.astype(v.dtype), v)
    for part, v in zip(o, values, strict=True)
  )
  return m_new, alpha * l + p.sum(axis=1), o


def rows_of(x: Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
  """All rows of one head of `[B R H d]`; heads are the second grid axis."""
  _, rows, heads, width = x.shape
  return pl.BlockSpec(
    (None, rows, None, width), lambda b, h, i: (b, 0, h if heads > 1 else 0, 0)
  )


def tokens_of(x: Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
  """All rows of one stream of `[B S ...]`, whatever the head."""
  rest = x.shape[1:]
  return pl.BlockSpec((None, *rest), lambda b, h, i: (b, *(0 for _ in rest)))


def compiler_params(config: Config) -> plgpu.CompilerParams:
  """Warps and stages for the compiler."""
  return plgpu.CompilerParams(
    num_warps=config.num_warps, num_stages=config.num_stages
  )


def segment_inputs(
  segments: tuple[forms.KeyValue, ...], *, block: int
) -> tuple[list[Array], list[pl.BlockSpec]]:
  """What kernels that walk over keys read, and how, segment by segment.

  Args:
    segments: Keys and values.
    block: Keys per block.

  Returns:
    Per segment start, count and number of blocks, content, positional keys
    and, unless the content is the value, values.
  """
  arrays, in_specs = [], []
  for s in segments:
    table = blocks.table_of(s.valid, granule=s.granule, block=block)
    flat = (table.start, table.count, table.num_blocks[:, None])
    heads = [s.content] if s.value is None else [s.content, s.value]
    arrays += [*flat, s.content, s.rope, *heads[1:]]
    in_specs += [tokens_of(t) for t in flat]
    in_specs += [rows_of(s.content), tokens_of(s.rope)]
    in_specs += [rows_of(x) for x in heads[1:]]
  return arrays, in_specs


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
  shared = segments[0].value is None
  keys, key_specs = segment_inputs(segments, block=config.keys)
  width = segments[0].values.shape[-1]
  out = jax.ShapeDtypeStruct((batch, rows, heads, width), queries.content.dtype)
  log_sum = jax.ShapeDtypeStruct((batch, heads, rows), jnp.float32)
  return pl.pallas_call(
    functools.partial(
      _forward_kernel,
      num_segments=len(segments),
      shared=shared,
      config=config,
      scale=scale,
    ),
    grid=(batch, heads, pl.cdiv(rows, config.rows)),
    in_specs=[*(rows_of(q) for q in queries), *key_specs],
    out_specs=[
      rows_of(out),
      pl.BlockSpec((None, None, rows), lambda b, h, i: (b, h, 0)),
    ],
    out_shape=[out, log_sum],
    compiler_params=compiler_params(config),
    interpret=interpret,
    name="latent_attention",
  )(*queries, *keys)
