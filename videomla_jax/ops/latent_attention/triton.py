"""Flash attention over shared latents for few queries, in the Triton language.

Absorbed form only: keys have one head, and the content is also the value. A
few hundred rows of queries are too few tiles for a GPU, so keys are split too:
program (tile, z, b) takes its share z of the blocks of row b of the batch and
leaves a partial result, the output o_z and L_z = log2 Σ 2^s (flash decoding).
With M the largest of them, over all shares and segments,

  o = Σ_z 2^(L_z - M) o_z / Σ_z 2^(L_z - M)

is the exact softmax. A share without keys has L_z = -∞ and weighs nothing.
`pallas_triton_forward` has the recurrence, and what happens to latents in eight
bits; `triton_config` has why widths come in parts.
"""

from collections.abc import Sequence
import functools
import math
import typing
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from videomla_jax.ops import device
from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import blocks
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import pallas_triton
from videomla_jax.ops.latent_attention import triton_config
from videomla_jax.ops.latent_attention import types

try:
  import jax_triton
  from triton import jit as _jit
  import triton.language as tl
  from triton.language import constexpr
except ImportError:
  tl = None
  constexpr, _jit = Any, lambda kernel: kernel

# Partial outputs of a segment, and the logarithms of their sums.
Partial = tuple[Float32[Array, "B _ R D"], Float32[Array, "B _ R"]]

DTYPES = ("float32", "bfloat16", "float16")
_parts = functools.partial(triton_config.parts, name="triton")


Pointer = tl.tensor if tl else Any  # Triton's arguments for arrays
# Programs that run at once, one for each multiprocessor of a B200: keys are
# split until there are about so many.
PROGRAMS = 148


def splits(
  config: triton_config.Config,
  *,
  batch: int,
  rows: int,
  num_blocks: int,
  programs: int = PROGRAMS,
) -> int:
  """Computes in how many shares the keys of a row of the batch are visited.

  Args:
    config: Sizes of the tiles.
    batch: Rows of the batch.
    rows: Query rows of each of them.
    num_blocks: Blocks of keys of each of them.
    programs: Programs that run at once.
  """
  tiles = batch * -(-rows // config.rows)
  return max(1, min(programs // tiles, num_blocks))


def config_of(
  d_c: int, itemsize: int = 2, capability: float = 10
) -> triton_config.Config:
  """Returns block sizes with which no width that 64 divides spills registers.

  ptxas says so for every such width up to 512; nothing was timed.

  Args:
    d_c: Width of the content latent.
    itemsize: Bytes of a number.
    capability: Compute capability of the GPU.
  """
  if itemsize > 2:  # float32: no tensor cores
    return triton_config.Config(rows=16, keys=16, num_warps=4, num_stages=2)
  # There are three stages, since the table is read ahead of the keys.
  if d_c <= 256:
    return triton_config.Config(rows=64, keys=64, num_stages=3)
  # Only Blackwell has tensor memory for 64 rows of outputs this wide.
  rows = 64 if d_c <= 384 or int(capability) == 10 else 32
  return triton_config.Config(rows=rows, keys=32, num_stages=3)


def eight_bit_width(capability: float) -> int:
  """Returns the largest d_c that does not spill in eight bits.

  Converting bytes takes registers. Before Hopper tensor cores read keys from
  registers, too, so that no width is left: zero.

  Args:
    capability: Compute capability of the GPU.
  """
  return {10: 448, 9: 192}.get(int(capability), 0)


# Triton reads the source of what follows; run-time type checks would hide it.
@_jit
@typing.no_type_check
def _load(
  ptr: Pointer,
  rows: Pointer,
  inside: Pointer,
  width: constexpr,
  cut: constexpr,
) -> tuple:
  """Loads rows of a `[S, width]` array in parts; zeros where not inside."""
  found = ()
  for i in tl.static_range(len(cut)):
    columns = cut[i][0] + tl.arange(0, cut[i][1])
    at = ptr + rows[:, None] * width + columns[None, :]
    found += (tl.load(at, mask=inside[:, None], other=0.0),)
  return found


@_jit
@typing.no_type_check
def _kernel(
  content_ptr: Pointer,  # [B, R, d_c]
  rope_ptr: Pointer,  # [B, R, d_r]
  key_ptr: Pointer,  # [B, S, d_c]
  key_rope_ptr: Pointer,  # [B, S, d_r]
  start_ptr: Pointer,  # [B, M]
  count_ptr: Pointer,  # [B, M]
  num_blocks_ptr: Pointer,  # [B]
  key_scale_ptr: Pointer,  # [B, S], None unless keys have eight bits
  out_ptr: Pointer,  # [B, Z, R, d_c]
  log_sum_ptr: Pointer,  # [B, Z, R]
  sizes: constexpr,  # R, S, M, Z, d_c, d_r
  content_cut: constexpr,
  rope_cut: constexpr,
  tile: constexpr,
  block: constexpr,
  scale: constexpr,
  precision: constexpr,
) -> None:
  """Takes one tile of query rows through one share of the blocks of keys."""
  R, S, M, Z, d_c, d_r = sizes
  z = tl.program_id(1)
  # Offsets into a large batch exceed 32 bits.
  b = tl.program_id(2).to(tl.int64)
  rows = tl.program_id(0) * tile + tl.arange(0, tile)
  inside = rows < R
  q = _load(content_ptr + b * R * d_c, rows, inside, d_c, content_cut)
  q += _load(rope_ptr + b * R * d_r, rows, inside, d_r, rope_cut)
  m = tl.full((tile,), -1e30, tl.float32)
  l = tl.zeros((tile,), tl.float32)
  o = ()
  for i in tl.static_range(len(content_cut)):
    o += (tl.zeros((tile, content_cut[i][1]), tl.float32),)
  num_blocks = tl.load(num_blocks_ptr + b)
  for j in tl.range(num_blocks * z // Z, num_blocks * (z + 1) // Z):
    keys = tl.load(start_ptr + b * M + j) + tl.arange(0, block)
    in_block = tl.arange(0, block) < tl.load(count_ptr + b * M + j)
    k = _load(key_ptr + b * S * d_c, keys, in_block, d_c, content_cut)
    k += _load(key_rope_ptr + b * S * d_r, keys, in_block, d_r, rope_cut)
    if key_scale_ptr is not None:
      key_scale = tl.load(
        key_scale_ptr + b * S + keys, mask=in_block, other=0.0
      )
      key_scale = key_scale.to(tl.float32)[None, :]
    s = tl.zeros((tile, block), tl.float32)
    for i in tl.static_range(len(q)):
      if key_scale_ptr is not None and i == len(content_cut):
        s *= key_scale  # before the positional part
      s = tl.dot(
        q[i], tl.trans(k[i].to(q[i].dtype)), s, input_precision=precision
      )
    s = tl.where(in_block[None, :], s * scale, -1e30)
    m_new = tl.maximum(m, tl.max(s, 1))
    p = tl.exp2(s - m_new[:, None])
    alpha = tl.exp2(m - m_new)
    l = alpha * l + tl.sum(p, 1)
    m = m_new
    if key_scale_ptr is not None:
      p *= key_scale
    new = ()
    for i in tl.static_range(len(content_cut)):
      v, old = k[i].to(q[i].dtype), o[i] * alpha[:, None]
      new += (tl.dot(p.to(v.dtype), v, old, input_precision=precision),)
    o = new
  at = (b * Z + z) * R + rows
  tl.store(log_sum_ptr + at, m + tl.log2(l), mask=inside)  # log2 0 = -∞
  for i in tl.static_range(len(content_cut)):
    columns = content_cut[i][0] + tl.arange(0, content_cut[i][1])
    to = out_ptr + at[:, None] * d_c + columns[None, :]
    tl.store(to, o[i] / tl.where(l > 0, l, 1.0)[:, None], mask=inside[:, None])


def _constants(
  sizes: tuple[int, ...],
  scale: float,
  exact: bool,
  config: triton_config.Config,
) -> dict[str, Any]:
  """Returns what the kernel is compiled for.

  Args:
    sizes: R, S, M, Z, d_c, d_r.
    scale: Logit multiplier.
    exact: Whether products of float32 keep their bits.
    config: Sizes of the tiles.
  """
  return {
    "sizes": sizes,
    "content_cut": _parts(sizes[4]),
    "rope_cut": _parts(sizes[5]),
    "tile": config.rows,
    "block": config.keys,
    "scale": scale * math.log2(math.e),
    "precision": "ieee" if exact else "tf32",
  }


def _partial(
  queries: types.Queries,
  segment: types.KeyValue,
  *,
  scale: float,
  config: triton_config.Config,
  programs: int,
) -> Partial:
  """Runs the kernel on one segment."""
  batch, rows, _, d_c = queries.content.shape
  keys, d_r = segment.rope.shape[1:]
  table = blocks.table_of(
    segment.valid, validity_block=segment.validity_block, block=config.keys
  )
  if isinstance(segment.content, quantise.Quantised):
    content, key_scale = segment.content
  else:
    content, key_scale = segment.content, None
  length = table.start.shape[1]
  shares = splits(
    config, batch=batch, rows=rows, num_blocks=length, programs=programs
  )
  f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  sizes = (rows, keys, length, shares, d_c, d_r)
  return jax_triton.triton_call(
    *queries,
    content,
    segment.rope,
    *table,
    key_scale,
    kernel=_kernel,
    name="latent_attention",
    out_type=(f32((batch, shares, rows, d_c)), f32((batch, shares, rows))),
    grid=(-(-rows // config.rows), shares, batch),
    num_warps=config.num_warps,
    num_stages=config.num_stages,
    compute_capability=round(10 * device.current().capability) or None,
    **_constants(sizes, scale, queries.content.dtype == jnp.float32, config),
  )


def combine(partial: Sequence[Partial]) -> Float32[Array, "B R D"]:
  """Joins partial outputs into those of a softmax over all keys.

  Args:
    partial: Outputs and logarithms of sums of each segment; -∞ weighs nothing.
  """
  largest = functools.reduce(jnp.maximum, [x.max(1) for _, x in partial])
  # It is finite without any key, too: no ∞ - ∞, no division by zero.
  largest = jnp.maximum(largest, jnp.finfo(jnp.float32).min)
  weights = [jnp.exp2(x - largest[:, None]) for _, x in partial]
  total = sum(w.sum(1) for w in weights)
  # This is no product of matrices, which would round to TF32.
  out = sum((w[..., None] * o).sum(1) for w, (o, _) in zip(weights, partial))
  return out / jnp.where(total > 0, total, 1.0)[..., None]


def check(queries: types.Queries, segments: Sequence[types.KeyValue]) -> None:
  """Raises `NotImplementedError` for a call that the kernel cannot take."""
  if tl is None:
    raise NotImplementedError(
      "triton: needs jax-triton; pip install 'videomla-jax[gpu]'"
    )
  _, _, heads, d_c = queries.content.shape
  if heads != 1 or any(s.value is not None for s in segments):
    raise NotImplementedError("triton: has the absorbed form only")
  forms.check("triton", queries, segments, dtypes=DTYPES, eight_bits=True)
  widest = eight_bit_width(device.current().capability or 10.0)
  if d_c > widest and any(s.is_eight_bit for s in segments):
    raise NotImplementedError(
      f"triton: width {d_c} spills registers in eight bits, {widest} would not"
    )
  if not 64 <= d_c <= 512:
    raise NotImplementedError(f"triton: width {d_c} is not in 64..512")
  for x in queries:
    _parts(x.shape[-1])


def flash(
  queries: types.Queries,
  segments: Sequence[types.KeyValue],
  *,
  scale: float,
  config: triton_config.Config | None = None,
  programs: int = PROGRAMS,
) -> Float[Array, "B R 1 D"]:
  """Runs the kernel of `forms.attend` in the absorbed form, for few rows.

  Where a gradient is asked for, Pallas Triton's kernels run.

  Args:
    queries: Queries of one head, with heads as further rows.
    segments: Latents as keys of one head, without values.
    scale: Logit multiplier, positive.
    config: Block sizes; without it, rows that fill a GPU are refused.
    programs: Programs that run at once.

  Returns:
    The value of every query row.

  Raises:
    NotImplementedError: If the sizes do not fit, if rows are many, or if
      jax-triton is not installed.
  """
  check(queries, segments)
  batch, rows, _, d_c = queries.content.shape
  dtype = queries.content.dtype
  if config is None:
    here = device.current().capability or 10.0
    config = config_of(d_c, dtype.itemsize, here)
    if splits(config, batch=batch, rows=rows, num_blocks=2) == 1:
      raise NotImplementedError(
        f"triton: {rows} rows fill a GPU without splitting the keys"
      )

  def run(
    queries: types.Queries, segments: tuple[types.KeyValue, ...]
  ) -> Float[Array, "B R 1 D"]:
    share = functools.partial(
      _partial, queries, scale=scale, config=config, programs=programs
    )
    out = combine([share(s) for s in segments])
    return out[:, :, None].astype(dtype)

  flash = pallas_triton.with_gradient(run, scale=scale)
  return flash(queries, tuple(segments))
