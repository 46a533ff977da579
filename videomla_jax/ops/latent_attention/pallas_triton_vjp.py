"""Gradient of the Pallas Triton kernel, memory linear in queries plus keys.

FlashAttention-2 (arXiv:2307.08691), from the saved logarithm of the sum L:

  p  = 2^(s - L),  dp = do Vᵀ,  ds = p (dp - Σ do o) scale
  dV = pᵀ do,      dK = dsᵀ Q,  dQ = ds K

One kernel walks over keys for a tile of rows (dQ), another over rows for a
tile of keys (dK and dV, with per-head gradients of the shared positional key,
which are summed afterwards). Keys that were not seen get exact zeros.
"""

import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp

from videomla_jax.ops.latent_attention import pallas_triton_forward as kernel
from videomla_jax.ops.latent_attention import specs

Config = kernel.Config


def config_of(content: int, value: int) -> Config:
  """Block sizes of both backward kernels.

  A dK/dV tile holds content + rope + value float32 columns per key, and both
  kernels recompute the scores: half the rows of the forward pass.
  """
  if max(content, value) <= 128:
    return Config(rows=64, keys=64, num_warps=8, num_stages=1)
  if max(content, value) <= 192:
    return Config(rows=64, keys=32, num_warps=8, num_stages=1)
  return Config(rows=32, keys=32, num_warps=4, num_stages=1)


def gradients(
  queries, segments, out, log_sum, d_out, *, scale, interpret=False
):
  """Gradients of queries and segments.

  Args:
    queries: As in the forward pass, like `segments`.
    segments: Keys and values.
    out: Output of the forward pass, `[B R H D]`.
    log_sum: Its base-2 logarithm of the sum of each row, `[B H R]`.
    d_out: Gradient of the output.
    scale: Logit multiplier.
    interpret: Run on a CPU.
  """
  first = segments[0]
  config = config_of(first.content.shape[-1], first.values.shape[-1])
  delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
  rows = (*queries, d_out, log_sum, delta.swapaxes(1, 2))
  call = dict(config=config, scale=scale, interpret=interpret)
  d_queries = _query_gradient(rows, segments, **call)
  return d_queries, tuple(_key_gradient(rows, s, **call) for s in segments)


def _row_specs(rows):
  """Block specs of `rows`: queries, gradient of the output, L and Σ do o."""
  *wide, _, delta = rows
  line = pl.BlockSpec((None, None, delta.shape[2]), lambda b, h, i: (b, h, 0))
  return [*(kernel.rows_of(x) for x in wide), line, line]


def _load_rows(refs, *rows):
  content, rope, d_out, log_sum, delta = refs
  query = kernel.load_parts(content, *rows) + kernel.load_parts(rope, *rows)
  return (
    query,
    kernel.load_parts(d_out, *rows),
    kernel.load_line(log_sum, *rows),
    kernel.load_line(delta, *rows),
  )


def _score_gradient(query, key, values, d_out, log_sum, delta, own, scale):
  """Probabilities and gradients of the scores of a tile."""
  s = kernel.score(query, key) * (scale * kernel.LOG2_E)
  p = jnp.where(own, jnp.exp2(s - log_sum[:, None]), 0.0)
  dp = kernel.score(d_out, values)
  return p, p * (dp - delta[:, None]) * scale


def _store(refs, start, gradients):
  """Stores parts in one ref after the other."""
  for ref in refs:
    count = len(kernel.parts(ref.shape[1]))
    kernel.store_parts(ref, start, gradients[:count])
    gradients = gradients[count:]


def _query_kernel(*refs, config, scale):
  rows, segments, outs = refs[:5], refs[5], refs[6:]
  first_row = pl.program_id(2) * config.rows
  query, d_out, log_sum, delta = _load_rows(rows, first_row, config.rows)

  def visit(j, d_query, segment):
    keys = (segment.start[j], config.keys)
    k_content = kernel.load_parts(segment.content, *keys)
    k = k_content + kernel.load_parts(segment.rope, *keys)
    v = k_content
    if segment.value is not None:
      v = kernel.load_parts(segment.value, *keys)
    own = (jnp.arange(config.keys) < segment.count[j])[None, :]
    _, ds = _score_gradient(query, k, v, d_out, log_sum, delta, own, scale)
    return tuple(
      a + kernel.dot(ds.astype(b.dtype), b)
      for a, b in zip(d_query, k, strict=True)
    )

  d_query = tuple(jnp.zeros(q.shape, jnp.float32) for q in query)
  for segment in segments:
    body = functools.partial(visit, segment=segment)
    d_query = jax.lax.fori_loop(0, segment.num_blocks[0], body, d_query)
  _store(outs, first_row, d_query)


def _query_gradient(rows, segments, *, config, scale, interpret):
  content, rope = rows[:2]
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
    in_specs=[*_row_specs(rows), key_specs],
    out_specs=[kernel.rows_of(x) for x in outs],
    out_shape=outs,
    compiler_params=kernel.compiler_params(config),
    interpret=interpret,
    name="latent_attention_query_gradient",
  )(*rows, keys)
  nothing: Any = None
  return specs.Queries(d_content, d_rope[0] if d_rope else nothing)


def _key_kernel(*refs, granule, config, scale):
  rows, (valid, content, rope, value, *outs) = refs[:5], refs[5:]
  num_keys, num_rows = content.shape[0], rows[0].shape[0]
  keys = (pl.program_id(2) * config.keys, config.keys)
  k_content = kernel.load_parts(content, *keys)
  k = k_content + kernel.load_parts(rope, *keys)
  v = k_content if value is None else kernel.load_parts(value, *keys)
  key = jnp.minimum(keys[0] + jnp.arange(config.keys), num_keys - 1)
  seen = plgpu.load(valid.at[key // granule]) != 0

  def visit(i, carry):
    d_key, d_value = carry
    row = i * config.rows + jnp.arange(config.rows)
    inside = (row < num_rows)[:, None] & seen[None, :]
    query, d_out, log_sum, delta = _load_rows(
      rows, i * config.rows, config.rows
    )
    p, ds = _score_gradient(query, k, v, d_out, log_sum, delta, inside, scale)
    d_key = tuple(
      a + kernel.dot(ds.astype(q.dtype).T, q)
      for a, q in zip(d_key, query, strict=True)
    )
    d_value = tuple(
      a + kernel.dot(p.astype(g.dtype).T, g)
      for a, g in zip(d_value, d_out, strict=True)
    )
    return d_key, d_value

  zeros = lambda xs: tuple(jnp.zeros(x.shape, jnp.float32) for x in xs)
  d_key, d_value = jax.lax.fori_loop(
    0, pl.cdiv(num_rows, config.rows), visit, (zeros(k), zeros(v))
  )
  if value is None:  # The content is key and value.
    joint = tuple(a + b for a, b in zip(d_key[: len(v)], d_value, strict=True))
    _store(outs, keys[0], joint + d_key[len(v) :])
  else:
    _store(outs, keys[0], d_key + d_value)


def _key_gradient(rows, segment, *, config, scale, interpret):
  content, rope, value = segment.content, segment.rope, segment.value
  batch, num_keys, heads, _ = content.shape
  outs = [jax.ShapeDtypeStruct(content.shape, content.dtype)]
  if rope is not None:
    shape = (batch, num_keys, heads, rope.shape[-1])
    outs.append(jax.ShapeDtypeStruct(shape, jnp.float32))
  if value is not None:
    outs.append(jax.ShapeDtypeStruct(value.shape, value.dtype))
  valid = segment.valid.astype(jnp.int32)
  d_content, *rest = pl.pallas_call(
    functools.partial(
      _key_kernel, granule=segment.granule, config=config, scale=scale
    ),
    grid=(batch, heads, pl.cdiv(num_keys, config.keys)),
    in_specs=[
      *_row_specs(rows),
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
  )(*rows, valid, content, rope, value)
  return segment._replace(
    content=d_content,
    rope=None if rope is None else rest[0].sum(2).astype(rope.dtype),
    value=None if value is None else rest[-1],
    valid=None,
  )
