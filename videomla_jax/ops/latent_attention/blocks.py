"""Which key blocks a kernel visits: runs of valid keys cut into blocks.

Validity is known per granule (a latent frame of a ring buffer), so the valid
keys of a stream are a few runs of consecutive tokens. A run of n keys is
visited in ⌈n / block⌉ blocks, each `(start, count)`; a kernel loads `block`
keys from `start` on, of which the first `count` are its own, and never sees a
mask. Empty granules cost nothing, and a stream stops after `num_blocks`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32


class BlockTable(NamedTuple):
  """Blocks of one segment of keys, for each stream of a batch.

  Attributes:
    start: First key of the block; rows past `num_blocks` are zero.
    count: Keys of the block that are its own, 1..block; zero past the end.
    num_blocks: Blocks to visit, perhaps none.
  """

  start: Int32[Array, "B M"]
  count: Int32[Array, "B M"]  # type: ignore[assignment]
  num_blocks: Int32[Array, "B"]


def max_blocks(num_granules: int, granule: int, block: int) -> int:
  """Bound on the blocks of a segment: every granule a run of its own."""
  return num_granules * -(-granule // block)


def table_of(
  valid: Bool[Array, "B G"], *, granule: int, block: int
) -> BlockTable:
  """Cuts the valid runs of a segment into blocks.

  Args:
    valid: True where a granule of keys may be seen.
    granule: Keys per granule.
    block: Keys per block.

  Returns:
    A table in the order of the keys; neighbouring granules share blocks.
  """
  length = max_blocks(valid.shape[1], granule, block)
  return jax.vmap(lambda row: _row(row, granule, block, length))(valid)


def longest_first(tables: Sequence[BlockTable]) -> Int32[Array, "B"]:
  """Streams by their blocks in all segments, most first.

  Work that is dealt out in this order ends with the shortest items.
  """
  blocks = jnp.stack([t.num_blocks for t in tables]).sum(0)
  return jnp.argsort(blocks, descending=True).astype(jnp.int32)


def _row(valid, granule, block, length):
  index = jnp.arange(valid.shape[0], dtype=jnp.int32)
  before = jnp.concatenate([jnp.zeros(1, bool), valid[:-1]])
  starts = valid & ~before
  # A run is known by the granule that starts it; all its granules count there.
  run = jax.lax.cummax(jnp.where(starts, index, 0))
  keys = jnp.zeros_like(index).at[run].add(jnp.where(valid, granule, 0))
  ends = jnp.cumsum(-(-keys // block), dtype=jnp.int32)  # of the runs' blocks
  m = jnp.arange(length, dtype=jnp.int32)
  # Which run block m is of: few runs, so counting beats a search.
  owner = (ends[None, :] <= m[:, None]).sum(1, dtype=jnp.int32)
  owner = jnp.minimum(owner, valid.shape[0] - 1)
  offset = (m - jnp.where(owner > 0, ends[owner - 1], 0)) * block
  used = m < ends[-1]
  return BlockTable(
    start=jnp.where(used, owner * granule + offset, 0),
    count=jnp.where(used, jnp.minimum(keys[owner] - offset, block), 0),
    num_blocks=ends[-1],
  )
