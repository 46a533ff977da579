"""Attention over blocks of keys with an online softmax, in plain XLA.

Runs on every backend. For each block of keys with scores s, running maximum m,
running sum l and running output o (Milakov & Gimelshein, arXiv:1805.02867):

  m' = max(m, max s),  p = exp(s - m'),  α = exp(m - m')
  l' = α l + Σ p,      o' = α o + p V

so memory is linear in queries + keys. The gradient recomputes p from the saved
logarithm of the sum (FlashAttention-2, arXiv:2307.08691) and is linear too.

XLA passes over s and p several times. A CPU therefore takes one head and some
queries at a time, so that s stays in its cache; a GPU takes all at once. A loop
over heads keeps one core busy, so there are several, side by side.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import itertools

from einops import rearrange
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from videomla_jax.ops import device
from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import types

KEY_BLOCK = 512  # scores of a block: 4 bytes x L x N x 512
CPU_ROWS = 2048  # queries that a CPU takes at a time: 4 MB of scores
# With fewer queries per head, heads are not taken one after the other: small
# products are slow (tiles of 256 queries took 1.7 times the time).
CPU_LEAST = 384
CPU_GROUPS = 4  # loops over heads that run side by side

Rows = Float[Array, "B N L D"]
RowKeys = Float[Array, "B N S D"]
RowValues = Float[Array, "B N S V"]
RowOutputs = Float[Array, "B N L V"]
Residuals = tuple[
  Rows,
  RowKeys,
  RowValues,
  Bool[Array, "B S"],
  RowOutputs,
  Float[Array, "B N L 1"],
]


def _scores(
  q: Rows, k: RowKeys, valid: Bool[Array, "B S"], scale: float
) -> Float[Array, "B N L S"]:
  s = jnp.einsum("BNLD,BNSD->BNLS", q, k, preferred_element_type=jnp.float32)
  return jnp.where(valid[:, None, None], s * scale, reference.MASKED)


def _one_block(
  q: Rows, k: RowKeys, v: RowValues, valid: Bool[Array, "B S"], scale: float
) -> RowOutputs:
  """Softmax attention whose scores fit at once; JAX differentiates it."""
  s = _scores(q, k, valid, scale)
  # The maximum cancels out, so it needs no gradient.
  p = jnp.exp(s - jax.lax.stop_gradient(s.max(-1, keepdims=True)))
  o = jnp.einsum(
    "BNLS,BNSV->BNLV",
    p.astype(v.dtype),
    v,
    preferred_element_type=jnp.float32,
  )
  # L x V divisions instead of L x S.
  return (o / p.sum(-1, keepdims=True)).astype(v.dtype)


def _blocks(x: Array, axis: int, block: int) -> tuple[Array, Array]:
  """Splits an axis into `[n, ...]` full blocks and the shorter rest."""
  count = x.shape[axis] // block
  full = jax.lax.slice_in_dim(x, 0, count * block, axis=axis)
  shape = (*x.shape[:axis], count, block, *x.shape[axis + 1 :])
  rest = jax.lax.slice_in_dim(x, count * block, x.shape[axis], axis=axis)
  return jnp.moveaxis(full.reshape(shape), axis, 0), rest


def _over_blocks(
  step: Callable[[PyTree, tuple[Array, ...]], tuple[PyTree, PyTree]],
  carry: PyTree,
  arrays: Sequence[Array],
  axes: Sequence[int],
  block: int,
) -> tuple[PyTree, PyTree]:
  """Folds `step` over the blocks of keys and the rest; joins what it emits.

  Args:
    step: (carry, block of each array) -> (carry, what the block emits).
    carry: Where the fold starts.
    arrays: What is cut into blocks.
    axes: The axis of the keys in each array.
    block: Keys per block.
  """
  split = [_blocks(x, a, block) for x, a in zip(arrays, axes, strict=True)]
  carry, out = jax.lax.scan(step, carry, tuple(full for full, _ in split))
  joined = jax.tree.map(
    lambda y: jnp.moveaxis(y, 0, 2).reshape(*y.shape[1:3], -1, *y.shape[4:]),
    out,
  )
  # The rest is shorter than a block, and a scan takes steps of one shape.
  if split[0][1].shape[axes[0]]:
    carry, rest = step(carry, tuple(r for _, r in split))
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 2), joined, rest)
  return carry, joined


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _flash(
  q: Rows,
  k: RowKeys,
  v: RowValues,
  valid: Bool[Array, "B S"],
  scale: float,
  block: int,
) -> RowOutputs:
  return _flash_forward(q, k, v, valid, scale, block)[0]


def _flash_forward(
  q: Rows,
  k: RowKeys,
  v: RowValues,
  valid: Bool[Array, "B S"],
  scale: float,
  block: int,
) -> tuple[RowOutputs, Residuals]:
  """Online softmax; saves the logarithm of the sum for the gradient."""

  def step(
    carry: tuple[Array, Array, Array], xs: tuple[Array, ...]
  ) -> tuple[tuple[Array, Array, Array], None]:
    m, l, o = carry
    kb, vb, vmask = xs
    s = _scores(q, kb, vmask, scale)
    m_new = jnp.maximum(m, s.max(-1, keepdims=True))
    p, alpha = jnp.exp(s - m_new), jnp.exp(m - m_new)
    # A block without a valid key must add nothing, whatever m is.
    p = jnp.where(vmask[:, None, None], p, 0.0)
    pv = jnp.einsum(
      "BNLS,BNSV->BNLV",
      p.astype(vb.dtype),
      vb,
      preferred_element_type=jnp.float32,
    )
    return (m_new, alpha * l + p.sum(-1, keepdims=True), alpha * o + pv), None

  rows = q.shape[:3]
  carry = (
    jnp.full((*rows, 1), reference.MASKED, jnp.float32),
    jnp.zeros((*rows, 1), jnp.float32),
    jnp.zeros((*rows, v.shape[-1]), jnp.float32),
  )
  (m, l, o), _ = _over_blocks(step, carry, (k, v, valid), (2, 2, 1), block)
  out = (o / l).astype(v.dtype)
  return out, (q, k, v, valid, out, m + jnp.log(l))


def _flash_backward(
  scale: float, block: int, saved: Residuals, d_out: RowOutputs
) -> tuple[Rows, RowKeys, RowValues, None]:
  """Recomputes the probabilities of each block of keys."""
  q, k, v, valid, out, log_sum = saved
  f32 = jnp.float32
  # Σ do o equals Σ p dp over all keys of a row, which is needed before the
  # first block is visited.
  delta = (d_out.astype(f32) * out.astype(f32)).sum(-1, keepdims=True)

  def step(
    dq: Array, xs: tuple[Array, ...]
  ) -> tuple[Array, tuple[Array, Array]]:
    kb, vb, vmask = xs
    p = jnp.exp(_scores(q, kb, vmask, scale) - log_sum)
    p = jnp.where(vmask[:, None, None], p, 0.0)
    dp = jnp.einsum("BNLV,BNSV->BNLS", d_out, vb, preferred_element_type=f32)
    ds = (p * (dp - delta) * scale).astype(kb.dtype)
    dv = jnp.einsum("BNLS,BNLV->BNSV", p.astype(d_out.dtype), d_out)
    dk = jnp.einsum("BNLS,BNLD->BNSD", ds, q)
    dq += jnp.einsum("BNLS,BNSD->BNLD", ds, kb, preferred_element_type=f32)
    return dq, (dk.astype(kb.dtype), dv.astype(vb.dtype))

  dq, (dk, dv) = _over_blocks(
    step, jnp.zeros(q.shape, f32), (k, v, valid), (2, 2, 1), block
  )
  return dq.astype(q.dtype), dk, dv, None


_flash.defvjp(_flash_forward, _flash_backward)


def _exceeds_cache(q: Rows) -> bool:
  """Tells whether a CPU's cache is too small for the scores of a block."""
  batch, heads, length, _ = q.shape
  rows = batch * length
  many = heads * rows > 2 * CPU_ROWS and rows >= CPU_LEAST
  return many and device.current().platform == "cpu"


def _one_head(
  q: Float[Array, "B L D"],
  k: Float[Array, "B S D"],
  v: Float[Array, "B S V"],
  *,
  valid: Bool[Array, "B S"],
  scale: float,
  block: int,
) -> Float[Array, "B L V"]:
  """Attention of one head, `CPU_ROWS` queries after the other."""

  def run(rows: Float[Array, "B _ D"]) -> Float[Array, "B _ V"]:
    return _flash(rows[:, None], k[:, None], v[:, None], valid, scale, block)[
      :, 0
    ]

  tiles, rest = _blocks(q, 1, CPU_ROWS)
  out = jnp.moveaxis(jax.lax.map(run, tiles), 0, 1)
  out = out.reshape(q.shape[0], -1, v.shape[-1])
  return jnp.concatenate([out, run(rest)], 1) if rest.shape[1] else out


def _head_by_head(
  q: Rows,
  k: RowKeys,
  v: RowValues,
  valid: Bool[Array, "B S"],
  scale: float,
  block: int,
) -> RowOutputs:
  """Attention of one head after the other, so that scores stay in cache.

  XLA runs loops that need nothing of each other on different cores.
  """

  def run(head: tuple[Array, Array, Array]) -> Float[Array, "B L V"]:
    return _one_head(*head, valid=valid, scale=scale, block=block)

  heads = [jnp.moveaxis(x, 1, 0) for x in (q, k, v)]
  count = q.shape[1]
  groups = min(CPU_GROUPS, count)
  starts = [i * count // groups for i in range(groups + 1)]
  out = [
    jax.lax.map(run, tuple(x[start:stop] for x in heads))
    for start, stop in itertools.pairwise(starts)
  ]
  return jnp.moveaxis(jnp.concatenate(out), 0, 1)


def attention(
  query: Float[Array, "B L N D"],
  key: Float[Array, "B S N D"],
  value: Float[Array, "B S N V"],
  valid: Bool[Array, "B S"],
  *,
  scale: float,
  block: int = KEY_BLOCK,
) -> Float[Array, "B L N V"]:
  """Softmax attention over the valid keys, one block of keys at a time.

  Args:
    query: Queries of every head.
    key: Keys of every head.
    value: Values of every head.
    valid: False where a key must not be seen. Every row of the batch needs one
      key that is valid.
    scale: Logit multiplier, positive.
    block: Keys per block.

  Returns:
    The value of every head in the dtype of `value`; softmax runs in float32.
  """
  # Heads lie outside of the matrices: plain products are 4x faster on a CPU.
  q, k, v = (rearrange(x, "B S N D -> B N S D") for x in (query, key, value))
  if k.shape[2] <= block:
    out = _one_block(q, k, v, valid, scale)
  elif _exceeds_cache(q):
    out = _head_by_head(q, k, v, valid, scale, block)
  else:
    out = _flash(q, k, v, valid, scale, block)
  return rearrange(out, "B N L V -> B L N V")


def flash(
  queries: types.Queries,
  segments: Sequence[types.KeyValue],
  *,
  scale: float,
  block: int = KEY_BLOCK,
) -> Float[Array, "B R H D"]:
  """Runs the attention above as the kernel of `forms.attend`.

  Segments are joined, and so are the content part and the positional part,
  which is copied to every head: XLA has no kernel that reads two.

  Args:
    queries: Content queries and rotated positional queries.
    segments: Keys and values of H heads, or of one that all share.
    scale: Logit multiplier, positive.
    block: Keys per block.

  Returns:
    The value of every query row and head.
  """

  def plain(
    x: Shaped[Array, "B S K d"] | quantise.Quantised, s: types.KeyValue
  ) -> Float[Array, "B S K d"]:
    return quantise.dequantise(x, s.rope.dtype)

  def with_rope(s: types.KeyValue) -> Float[Array, "B S K D"]:
    shape = (*s.content.shape[:3], s.rope.shape[-1])
    rope = jnp.broadcast_to(s.rope[:, :, None], shape)
    return jnp.concatenate([plain(s.content, s), rope], axis=-1)

  return attention(
    jnp.concatenate(queries, axis=-1),
    jnp.concatenate([with_rope(s) for s in segments], axis=1),
    jnp.concatenate([plain(s.values, s) for s in segments], axis=1),
    jnp.concatenate([s.valid_keys for s in segments], axis=1),
    scale=scale,
    block=block,
  )


def latent_attention(
  queries: types.Queries,
  keys: Sequence[types.Keys],
  up: types.UpProjections,
  *,
  form: types.Form,
  block: int = KEY_BLOCK,
) -> Float[Array, "B L N D"]:
  """Computes latent attention in one of its two forms.

  Args:
    queries: Content queries and rotated positional queries.
    keys: Segments of latents.
    up: Up-projections of the latents.
    form: "expanded" or "absorbed".
    block: Keys per block.

  Returns:
    The value of every head.
  """
  run = functools.partial(flash, block=block)
  return forms.attend(run, queries, (types.join(keys),), up, form=form)
