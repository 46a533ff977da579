"""Work items of our kernels in Mosaic, and the thread that loads for them.

One thread block per multiprocessor walks through work items: tiles of query
rows of one head that visit all keys of their row of the batch. Items of a head
are neighbours, and so are heads of a row of the batch: what runs together reads
the same keys from the L2 cache (absorbed: one set for all heads). The rows with
the most keys come first, which keeps short the time at the end when some
multiprocessors have no item left.

Keys arrive through rings: memories of a few stages which are filled together,
with a barrier that says that a stage is full and one that says that it is free.
Which stage is used, and which phase a barrier is in, follows from the number of
key blocks since the start of the kernel, which every warp counts for itself. So
each of them goes on by itself: queries and first keys of the next item arrive
while an item is finished.

Which keys are visited is decided outside (`blocks.table_of`): a block has a
first key and a number of keys to be used. TMA fills rows past the end with
zeros and does not write them, so no size needs padding; frames of several must
be a multiple of 8 tokens.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config as plan
from videomla_jax.ops.latent_attention import reference

Scalar = Shaped[Array, ""] | int
# Memories, lists of memories, and barriers: Mosaic has no common type of them.
Scratch = dict[str, Any]

LOG2_E = math.log2(math.e)
# The maximum before the first score. It lies far above a masked score, whose
# exponential is then zero even where there is no other score.
LEAST = reference.MASKED * 1e-10
_TABLE = 3  # arrays of a block table


@dataclasses.dataclass(frozen=True)
class Item:
  """A work item: tiles of query rows and the keys that they visit.

  A step is one block of keys.

  Attributes:
    example: Index of the row of the batch.
    head: Index of the head.
    rows: First query row of every tile.
    present: True for tiles that have rows.
    follows: False for the first item of a thread block.
    base: Steps of all items before, from which slots and phases follow.
    segments: The segments of keys.
    steps: Steps of this item.
  """

  example: Scalar
  head: Scalar
  rows: Sequence[Scalar]
  present: Sequence[Scalar]
  follows: Scalar
  base: Scalar
  segments: list["ItemSegment"]
  steps: Scalar

  def columns(self, width: int) -> pl.Slice:
    """The columns of the head in an array whose heads lie side by side."""
    return pl.ds(self.head * width, width)

  def count(self, j: Scalar) -> Scalar:
    """Keys to be used in step `j` of the item, whatever its segment."""
    count = jnp.int32(0)
    for segment in self.segments:
      block = j - (segment.before - self.base)
      inside = (block >= 0) & (block < segment.steps)
      found = segment.count[self.example, jnp.where(inside, block, 0)]
      count = jnp.where(inside, found, count)
    return count


class ItemSegment(NamedTuple):
  """What an item visits of one segment.

  Attributes:
    index: Index of the segment.
    start: First key of each block of each row of the batch, in tiles of rows.
    count: Keys of each block that are to be used.
    steps: Blocks of this item.
    before: Steps since the start of the kernel.
  """

  index: int  # type: ignore[assignment]
  start: jax.Ref
  count: jax.Ref  # type: ignore[assignment]
  steps: Scalar
  before: Scalar


@dataclasses.dataclass(frozen=True)
class Block:
  """What all warps of a thread block know.

  Attributes:
    widths: Channels of queries, keys and values.
    config: Sizes of the tiles.
    scale: Logit multiplier in base 2.
    rows: Query rows of a head.
    grid: Number of rows of the batch, of heads, and of items of a head.
    order: Rows of the batch, the one with the most keys first.
    tables: Start (in tiles of rows), count and number of blocks of each
      segment.
    queries: Queries by the names of the memories that they are loaded to.
    keys: The same of the keys and values of each segment.
    out: The output.
    log_sum: The base-2 logarithm of the sum of each row; None if nobody asks.
    rings: Names of the memories of each ring.
    refs: Memories and barriers by the names of the plan's `scratch`.
  """

  widths: plan.Widths
  config: plan.Config
  scale: float
  rows: int
  grid: tuple[int, int, int]
  order: jax.Ref
  tables: list[tuple[jax.Ref, ...]]
  queries: Mapping[str, jax.Ref]
  keys: Sequence[Mapping[str, jax.Ref]]
  out: jax.Ref
  log_sum: jax.Ref | None
  rings: Mapping[str, Sequence[str]]
  refs: Scratch

  @property
  def tiles(self) -> range:
    """Indices of the tiles of an item."""
    return range(self.config.tiles)

  def _item(self, info: plgpu.NDLoopInfo, base: Scalar) -> Item:
    position, head, index = info.index
    example = self.order[position]
    step, segments = base, []
    for i, (start, count, number) in enumerate(self.tables):
      segments.append(ItemSegment(i, start, count, number[example], step))
      step = step + number[example]
    rows = [
      index * self.config.item_rows + t * self.config.rows for t in self.tiles
    ]
    return Item(
      example=example,
      head=head,
      rows=rows,
      present=[row < self.rows for row in rows],
      follows=info.local_index > 0,
      base=base,
      segments=segments,
      steps=step - base,
    )

  def for_items(self, visit: Callable[[Item], None]) -> Scalar:
    """Calls `visit` for every item of this thread block; returns all steps."""

    @plgpu.nd_loop(self.grid, collective_axes="block", init_carry=jnp.int32(0))
    def steps(info: plgpu.NDLoopInfo, carry: Scalar) -> Scalar:
      item = self._item(info, carry)
      visit(item)
      return carry + item.steps

    return steps


def block_of(
  inputs: Sequence[jax.Ref],
  outs: Sequence[jax.Ref],
  *,
  widths: plan.Widths,
  config: plan.Config,
  scale: float,
  rows: int,
  grid: tuple[int, int, int],
  rings: Mapping[str, Sequence[str]],
  scratch: Scratch,
) -> Block:
  """Sorts the arguments of a kernel.

  Args:
    inputs: Order of the rows of the batch, queries, and all arrays of each
      segment, as `pallas_mosaic_gpu` lays them out.
    outs: The output and, where it is asked for, the logarithm of the sum.
    widths: Channels of queries, keys and values.
    config: Sizes of the tiles.
    scale: Logit multiplier.
    rows: Query rows of a head.
    grid: Number of rows of the batch, of heads, and of items of a head.
    rings: Names of the memories of each ring, in the order of a segment.
    scratch: Memories and barriers by name.
  """
  order, *inputs = inputs
  out, *log_sum = outs
  names = ["q_content", "q_rope"][: 2 if widths.rope else 1]
  queries = dict(zip(names, inputs, strict=False))
  memories = [name for ring in rings.values() for name in ring]
  segments = list(
    itertools.batched(inputs[len(names) :], _TABLE + len(memories))
  )
  return Block(
    widths=widths,
    config=config,
    scale=scale * LOG2_E,
    rows=rows,
    grid=grid,
    order=order,
    tables=[x[:_TABLE] for x in segments],
    queries=queries,
    keys=[dict(zip(memories, x[_TABLE:], strict=True)) for x in segments],
    out=out,
    log_sum=log_sum[0] if log_sum else None,
    rings=rings,
    refs=scratch,
  )


def load(block: Block) -> None:
  """Loads queries and keys of every item, for whoever computes with them.

  Args:
    block: What all warps know.
  """
  r, stages = block.refs, block.config.stages

  def visit(item: Item) -> None:
    # Scores of the item before are done with the memory before its softmax is.
    pl.when(item.follows)(lambda: plgpu.barrier_wait(r["q_free"]))
    for t in block.tiles:
      load_tile = functools.partial(_load_queries, block, item, t)
      pl.when(item.present[t])(load_tile)
    for segment in item.segments:

      def load(j: Scalar, _: None, segment: ItemSegment = segment) -> None:
        first = segment.start[item.example, j] * plan.TILE_ROWS
        keys = block.keys[segment.index]
        _load_keys(block, item, keys, first, segment.before + j)

      lax.fori_loop(0, segment.steps, load, None)

  steps = block.for_items(visit)

  # A barrier must not be left in the middle of a phase, so the stages that are
  # still to be freed are waited for.
  def drain(step: Scalar, _: None) -> None:
    for ring in block.rings:
      plgpu.barrier_wait(r[f"{ring}_free"].at[lax.rem(step, stages)])

  lax.fori_loop(lax.max(steps - stages, 0), steps, drain, None)
  plgpu.barrier_wait(r["q_free"])


def _load_queries(block: Block, item: Item, tile: int) -> None:
  """Starts to load the queries of a tile."""
  r = block.refs
  rows = pl.ds(item.rows[tile], block.config.rows)
  for name, gmem in block.queries.items():
    smem = r[name]
    source = gmem.at[item.example, rows, item.columns(smem.shape[-1])]
    plgpu.copy_gmem_to_smem(source, smem.at[tile], r["q_full"].at[tile])


def _load_keys(
  block: Block,
  item: Item,
  arrays: Mapping[str, jax.Ref],
  first: Scalar,
  step: Scalar,
) -> None:
  """Starts to load the keys of a step into its stage.

  Args:
    block: What all warps know.
    item: The work item.
    arrays: Arrays of the segment by the names of memories.
    first: First key of the block.
    step: Steps since the start of the kernel.
  """
  r, stages = block.refs, block.config.stages
  slot, keys = lax.rem(step, stages), pl.ds(first, block.config.keys)
  for ring, names in block.rings.items():
    free, full = r[f"{ring}_free"].at[slot], r[f"{ring}_full"].at[slot]
    pl.when(step >= stages)(functools.partial(plgpu.barrier_wait, free))
    for name in names:
      part = (item.example, keys)
      if name != "k_rope":  # which all heads share
        part += (item.columns(r[name].shape[-1]),)
      plgpu.copy_gmem_to_smem(arrays[name].at[part], r[name].at[slot], full)
