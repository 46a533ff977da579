"""JAX's flash attention for TPUs: the expanded form and dense attention.

Its kernel masks by numbers: a query sees the keys that have its own number. So
keys with holes among them stay where they are, and the keys that fill up the
last block are hidden in the same way. Every block of keys is visited, the
empty ones as well.

It was compiled for TPUs and computed in Pallas' interpreter on a CPU. It never
ran on a TPU, so the sizes of its blocks are a guess.
"""

from collections.abc import Sequence
import importlib
import math
from typing import Any

from einops import rearrange
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videomla_jax.ops.latent_attention import library
from videomla_jax.ops.latent_attention import types

NAME = "tpu_flash"
_MODULE = "jax.experimental.pallas.ops.tpu.flash_attention"
_QUERY_BLOCKS = (512, 256, 128)
_KEY_BLOCKS = (1024, *_QUERY_BLOCKS)
_GRADIENT_BLOCK = 512  # at most: a gradient holds more arrays of this size
_LANES = 128  # a wider head has a multiple of them
_MOST_PADDING = 0.1  # share of a length


def _library() -> Any:
  """Imports JAX's kernel, only now: it needs the compiler of Pallas for TPUs.

  Raises:
    NotImplementedError: If this JAX does not have it.
  """
  try:
    return importlib.import_module(_MODULE)
  except ImportError as error:
    raise NotImplementedError(f"{NAME}: {error}") from error


def block_of(length: int, sizes: Sequence[int]) -> int:
  """Returns the largest block that needs little padding, or the smallest.

  Args:
    length: Number of queries or keys.
    sizes: Sizes of blocks, the largest first.
  """
  fitting = (n for n in sizes if -length % n <= _MOST_PADDING * length)
  return next(fitting, sizes[-1])


def latent_attention(
  queries: types.Queries,
  keys: Sequence[types.Keys],
  up: types.UpProjections,
  *,
  form: types.Form,
) -> Float[Array, "B L N D"]:
  """Computes expanded latent attention, VideoMLA (arXiv:2605.30351), Eq. (7).

  Args:
    queries: Content queries and rotated positional queries.
    keys: Segments of latents.
    up: Up-projections of the latents.
    form: "expanded", the only one that the kernel has.

  Returns:
    The value of every head.

  Raises:
    NotImplementedError: If another form is asked for, or JAX lacks the kernel.
  """
  if form != "expanded":
    raise NotImplementedError(f"{NAME}: has no {form} form")
  rows, valid = library.joined(keys)
  seen = types.per_key(valid, num_keys=rows.shape[1])
  # Latents are 14 times smaller than the keys and values that are made of them,
  # so they are what is filled up.
  padding = -rows.shape[1] % block_of(rows.shape[1], _KEY_BLOCKS)
  rows = jnp.pad(rows, ((0, 0), (0, padding), (0, 0)))
  seen = jnp.pad(seen, ((0, 0), (0, padding)))
  # As in `library`, the barrier keeps XLA from making one product of two.
  key, value = (
    jnp.einsum("BSc,cNd->BNSd", *jax.lax.optimization_barrier((rows, weight)))
    for weight in library.with_positions(up, rope=keys[0].rope.shape[-1])
  )
  query = rearrange(jnp.concatenate(queries, axis=-1), "B L N D -> B N L D")
  out = _attention(
    query, key, value, seen, scale=1 / math.sqrt(query.shape[-1])
  )
  return rearrange(out, "B N L D -> B L N D")


def dense_attention(
  query: Float[Array, "B L N D"],
  key: Float[Array, "B S N D"],
  value: Float[Array, "B S N V"],
  valid: Bool[Array, "B G"] | None,
  *,
  scale: float,
) -> Float[Array, "B L N V"]:
  """Computes dense attention.

  Args:
    query: Queries of every head.
    key: Keys of every head.
    value: Values of every head.
    valid: A flag for each block of S / G keys; None if all are valid.
    scale: Logit multiplier.

  Returns:
    The value of every head.

  Raises:
    NotImplementedError: If JAX lacks the kernel.
  """
  seen = None
  if valid is not None:
    seen = types.per_key(valid, num_keys=key.shape[1])
  q, k, v = (rearrange(x, "B S N D -> B N S D") for x in (query, key, value))
  out = _attention(q, k, v, seen, scale=scale)
  return rearrange(out, "B N L V -> B L N V")


def _attention(
  query: Float[Array, "B N L D"],
  key: Float[Array, "B N S D"],
  value: Float[Array, "B N S V"],
  seen: Bool[Array, "B S"] | None,
  *,
  scale: float,
) -> Float[Array, "B N L V"]:
  """Fills lengths and widths up to what the kernel takes, and runs it."""
  flash = _library()
  batch, _, length, width = query.shape
  num_keys, value_width = value.shape[2:]
  query_block = block_of(length, _QUERY_BLOCKS)
  key_block = block_of(num_keys, _KEY_BLOCKS)
  more_keys = -num_keys % key_block
  # Keys and values have one width here. Zeros add nothing to a score.
  common = max(width, value_width)
  if common > _LANES:
    common += -common % _LANES

  def filled(x: Float[Array, "B N S D"], block: int) -> Array:
    more = (-x.shape[2] % block, common - x.shape[3])
    return jnp.pad(x, ((0, 0), (0, 0), *((0, n) for n in more)))

  if seen is None and more_keys:
    seen = jnp.ones((batch, num_keys), bool)
  numbers = None
  if seen is not None:
    seen = jnp.pad(seen, ((0, 0), (0, more_keys)))
    # Number 1 is seen, by all queries.
    all_queries = jnp.ones((batch, length + -length % query_block), jnp.int32)
    numbers = flash.SegmentIds(q=all_queries, kv=seen.astype(jnp.int32))
  out = flash.flash_attention(
    filled(query, query_block),
    filled(key, key_block),
    filled(value, key_block),
    segment_ids=numbers,
    sm_scale=scale,
    block_sizes=_block_sizes(flash, query_block, key_block),
  )
  return out[:, :, :length, :value_width]


def _block_sizes(flash: Any, queries: int, keys: int) -> Any:
  """Returns the blocks of the forward pass and of both passes of a gradient."""
  less_queries = min(queries, _GRADIENT_BLOCK)
  less_keys = min(keys, _GRADIENT_BLOCK)
  return flash.BlockSizes(
    block_b=1,
    block_q=queries,
    block_k_major=keys,
    block_k=keys,
    block_q_major_dkv=less_queries,
    block_q_dkv=less_queries,
    block_k_major_dkv=less_keys,
    block_k_dkv=less_keys,
    block_q_dq=less_queries,
    block_k_major_dq=less_keys,
    block_k_dq=less_keys,
  )
