"""Which blocks of keys a kernel visits: runs of valid keys, cut into blocks.

Validity is known per validity block (a latent frame of a ring buffer), so the
valid keys of a row of the batch are a few runs of consecutive tokens. A run of
n keys is visited in ⌈n / block⌉ blocks, each given as `(start, count)`. The
kernel loads `block` keys from `start` on, uses the first `count` of them, and
needs no mask in memory. Empty validity blocks cost nothing, and a kernel stops
after `num_blocks`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32


class BlockTable(NamedTuple):
  """Blocks of one segment of keys, for each row of the batch.

  Attributes:
    start: First key of each block; zero from `num_blocks` on.
    count: Keys of each block that are to be used, 1..block; zero from
      `num_blocks` on.
    num_blocks: Blocks to visit, perhaps none.
  """

  start: Int32[Array, "B M"]
  count: Int32[Array, "B M"]  # type: ignore[assignment]
  num_blocks: Int32[Array, "B"]


def max_blocks(
  num_validity_blocks: int, validity_block: int, block: int
) -> int:
  """Bounds the blocks of a segment: every validity block is a run by itself.

  Args:
    num_validity_blocks: G, validity blocks of the segment.
    validity_block: Keys per validity block.
    block: Keys per block of the kernel.
  """
  return num_validity_blocks * -(-validity_block // block)


def table_of(
  valid: Bool[Array, "B G"], *, validity_block: int, block: int
) -> BlockTable:
  """Cuts the valid runs of a segment into blocks.

  Args:
    valid: True where a validity block may be seen.
    validity_block: Keys per validity block.
    block: Keys per block of the kernel.

  Returns:
    A table in the order of the keys. Neighbouring validity blocks share blocks:
    four frames of 1,560 tokens are 49 blocks of 128 keys, not 4 x 13.
  """
  # XLA needs a fixed size, so the table is as long as the worst case.
  length = max_blocks(valid.shape[1], validity_block, block)
  return jax.vmap(
    lambda flags: _blocks_of_row(
      flags, validity_block=validity_block, block=block, length=length
    )
  )(valid)


def longest_first(tables: Sequence[BlockTable]) -> Int32[Array, "B"]:
  """Orders the rows of a batch by their blocks in all segments, most first.

  Work that is handed out in this order ends with the shortest items, so few
  multiprocessors wait for the last one.

  Args:
    tables: The table of each segment.
  """
  blocks = jnp.stack([t.num_blocks for t in tables]).sum(0)
  return jnp.argsort(blocks, descending=True).astype(jnp.int32)


def _blocks_of_row(
  valid: Bool[Array, "G"], *, validity_block: int, block: int, length: int
) -> BlockTable:
  """Makes the table of one row of the batch, padded to `length` blocks."""
  index = jnp.arange(valid.shape[0], dtype=jnp.int32)
  before = jnp.concatenate([jnp.zeros(1, bool), valid[:-1]])
  starts = valid & ~before
  # A run is named by its first validity block, where all its keys are counted.
  run = jax.lax.cummax(jnp.where(starts, index, 0))
  keys = jnp.zeros_like(index).at[run].add(jnp.where(valid, validity_block, 0))
  ends = jnp.cumsum(-(-keys // block), dtype=jnp.int32)  # blocks up to each run
  m = jnp.arange(length, dtype=jnp.int32)
  # The run of block m: there are few runs, so counting beats a search.
  owner = (ends[None, :] <= m[:, None]).sum(1, dtype=jnp.int32)
  # Entries that begin no run have no blocks, so the count passes them by.
  # Beyond the last block it would point past the end.
  owner = jnp.minimum(owner, valid.shape[0] - 1)
  offset = (m - jnp.where(owner > 0, ends[owner - 1], 0)) * block
  used = m < ends[-1]
  return BlockTable(
    start=jnp.where(used, owner * validity_block + offset, 0),
    count=jnp.where(used, jnp.minimum(keys[owner] - offset, block), 0),
    num_blocks=ends[-1],
  )
