"""The Blackwell kernel: what the warps of a thread block do, and in what order.

One thread block per multiprocessor walks through work items: one or two tiles
of query rows of one head that visit all keys of their row of the batch. Warps
and warpgroups hand work on to each other through barriers:

  TMA warp   loads queries once an item, blocks of keys into a ring of stages
  MMA warp   S_j = Q K_jᵀ (two products: content and shared positional part),
             O += P_j V_j
  softmax    m' = max(m, S_j), P_j = 2^(S_j - m'), O *= 2^(m - m') if m grew
             by more than `SLACK`, or else m' = m; a warpgroup for each tile

The softmax should never wait for a product. One tile has two slots for S, so
S_{j+1} is multiplied beside softmax j. Of two tiles each has one S, which its P
overwrites, and one's products run beside the softmax of the other.

S, P and O live in tensor memory. Where the value is the content itself
(absorbed form) the very block of shared memory that served as K serves as V.
The positional key is shared by all heads and never copied to them.

Each of them goes on by itself: while the softmax finishes an item, the next
one's queries and first keys arrive and its first scores are multiplied. Which
slot is used, and which phase a barrier is in, follows from the number of key
blocks since the start of the kernel, which all of them count. Items of a head
are neighbours, and so are heads of a row of the batch: what runs together reads
the same keys from the L2 cache (absorbed: one set for all heads). The rows with
the most keys come first, which keeps short the time at the end when some
multiprocessors have no item left.

Which keys are visited is decided outside (`blocks.table_of`): a block has a
first key and a number of keys to be used. TMA fills rows past the end with
zeros and does not write them, so no size needs padding; frames of several must
be a multiple of 8 tokens.
"""

from collections.abc import Callable
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
from jaxtyping import Array, Float32, Shaped

from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config as plan
from videomla_jax.ops.latent_attention import reference

Scalar = Shaped[Array, ""] | int
# Memories, lists of memories, and barriers: Mosaic has no common type of them.
Scratch = dict[str, Any]

LOG2_E = math.log2(math.e)
# The maximum before the first score. It lies far above a masked score, whose
# exponential is then zero even where there is no other score.
LEAST = reference.MASKED * 1e-10
# By how much, in base 2, scores may exceed what is taken for their maximum. It
# cancels out in P V / l. Without slack all of O would be rescaled whenever one
# of 128 rows has a new maximum: in 9 of 10 blocks of random scores, of 85.
SLACK = 8.0

_NATIVE = plgpu.Layout.TCGEN05_TMEM_NATIVE
_ROW = _NATIVE.reduce(1)
_OUT = plgpu.Layout.TCGEN05
_TMA_WARP, _MMA_WARP = 0, 1
_LOAD_GROUP = 0  # the others are softmax groups, one for each tile


@dataclasses.dataclass(frozen=True)
class _Item:
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
  segments: list["_ItemSegment"]
  steps: Scalar

  def columns(self, width: int) -> pl.Slice:
    """The columns of the head in an array whose heads lie side by side."""
    return pl.ds(self.head * width, width)


class _ItemSegment(NamedTuple):
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
class _Block:
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
    refs: Memories and barriers by the names of `plan.scratch`.
  """

  widths: plan.Widths
  config: plan.Config
  scale: float
  rows: int
  grid: tuple[int, int, int]
  order: jax.Ref
  tables: list[tuple[jax.Ref, ...]]
  refs: Scratch

  @property
  def tiles(self) -> range:
    """Indices of the tiles of an item."""
    return range(self.config.tiles)

  def _item(self, info: plgpu.NDLoopInfo, base: Scalar) -> _Item:
    position, head, index = info.index
    example = self.order[position]
    step, segments = base, []
    for i, (start, count, number) in enumerate(self.tables):
      segments.append(_ItemSegment(i, start, count, number[example], step))
      step = step + number[example]
    rows = [
      index * self.config.item_rows + t * self.config.rows for t in self.tiles
    ]
    return _Item(
      example=example,
      head=head,
      rows=rows,
      present=[row < self.rows for row in rows],
      follows=info.local_index > 0,
      base=base,
      segments=segments,
      steps=step - base,
    )

  def for_items(self, visit: Callable[[_Item], None]) -> Scalar:
    """Calls `visit` for every item of this thread block; returns all steps."""

    @plgpu.nd_loop(self.grid, collective_axes="block", init_carry=jnp.int32(0))
    def steps(info: plgpu.NDLoopInfo, carry: Scalar) -> Scalar:
      item = self._item(info, carry)
      visit(item)
      return carry + item.steps

    return steps


def _load(
  block: _Block,
  queries: Sequence[jax.Ref],
  segments: Sequence[Sequence[jax.Ref]],
) -> None:
  """Loads queries and keys of every item; the work of the TMA warp.

  Args:
    block: What all warps know.
    queries: Content queries and positional queries.
    segments: Content, positional part and perhaps values of each segment.
  """
  r, stages = block.refs, block.config.stages

  def visit(item: _Item) -> None:
    # Scores of the item before are done with the memory before its softmax is.
    pl.when(item.follows)(lambda: plgpu.barrier_wait(r["q_free"]))
    for t in block.tiles:
      load_tile = functools.partial(_load_queries, block, item, t, queries)
      pl.when(item.present[t])(load_tile)
    for segment in item.segments:

      def load(j: Scalar, _: None, segment: _ItemSegment = segment) -> None:
        first = segment.start[item.example, j] * plan.TILE_ROWS
        step = segment.before + j
        _load_keys(block, item, segments[segment.index], first, step)

      lax.fori_loop(0, segment.steps, load, None)

  steps = block.for_items(visit)

  # A barrier must not be left in the middle of a phase, so the stages that are
  # still to be freed are waited for.
  def drain(step: Scalar, _: None) -> None:
    plgpu.barrier_wait(r["k_free"].at[lax.rem(step, stages)])

  lax.fori_loop(lax.max(steps - stages, 0), steps, drain, None)
  plgpu.barrier_wait(r["q_free"])


def _load_queries(
  block: _Block, item: _Item, tile: int, queries: Sequence[jax.Ref]
) -> None:
  """Starts to load the queries of a tile."""
  r = block.refs
  rows = pl.ds(item.rows[tile], block.config.rows)
  for gmem, smem in zip(queries, (r["q_content"], r["q_rope"]), strict=True):
    source = gmem.at[item.example, rows, item.columns(smem.shape[-1])]
    plgpu.copy_gmem_to_smem(source, smem.at[tile], r["q_full"].at[tile])


def _load_keys(
  block: _Block,
  item: _Item,
  arrays: Sequence[jax.Ref],
  first: Scalar,
  step: Scalar,
) -> None:
  """Starts to load the keys of a step into its stage.

  Args:
    block: What all warps know.
    item: The work item.
    arrays: Content, positional part and perhaps values.
    first: First key of the block.
    step: Steps since the start of the kernel.
  """
  r, stages = block.refs, block.config.stages
  slot = lax.rem(step, stages)

  @pl.when(step >= stages)
  def wait_for_room() -> None:
    plgpu.barrier_wait(r["k_free"].at[slot])

  content, rope, *value = arrays
  keys, full = pl.ds(first, block.config.keys), r["k_full"].at[slot]
  plgpu.copy_gmem_to_smem(
    content.at[item.example, keys, item.columns(block.widths.content)],
    r["k_content"].at[slot],
    full,
  )
  plgpu.copy_gmem_to_smem(
    rope.at[item.example, keys], r["k_rope"].at[slot], full
  )
  for v in value:
    plgpu.copy_gmem_to_smem(
      v.at[item.example, keys, item.columns(block.widths.value)],
      r["v"].at[slot],
      full,
    )


def _multiply(block: _Block) -> None:
  """Starts all products of every item; the work of the MMA warp."""
  r, config = block.refs, block.config

  def visit(item: _Item) -> None:
    def scores(j: Scalar, t: int) -> None:
      multiply = functools.partial(_scores, block, item, j, t)
      pl.when(item.present[t] & (j < item.steps))(multiply)
      if t == config.tiles - 1:
        pl.when(j + 1 == item.steps)(
          lambda: plgpu.tcgen05_commit_arrive(r["q_free"])
        )

    def step(j: Scalar, _: None) -> None:
      for t in block.tiles:
        # S_{j+1} comes before O_j, since the softmax of j runs meanwhile. Its
        # slot held S_{j-1}, which was read before P_{j-1} was handed over.
        if config.slots > 1:
          scores(j + 1, t)
        outputs = functools.partial(_outputs, block, item, j, t)
        pl.when(item.present[t])(outputs)
        if t == config.tiles - 1:
          stage = lax.rem(item.base + j, config.stages)
          plgpu.tcgen05_commit_arrive(r["k_free"].at[stage])
        # Here the softmax of the other tile runs meanwhile.
        if config.slots == 1:
          scores(j + 1, t)

    for t in block.tiles:
      scores(jnp.int32(0), t)
    lax.fori_loop(0, item.steps, step, None)

  block.for_items(visit)


def _scores(block: _Block, item: _Item, j: Scalar, tile: int) -> None:
  """Starts the two products that make S of step `j` in its slot."""
  r, config = block.refs, block.config
  slot, stage = _slot(block, item, j), lax.rem(item.base + j, config.stages)
  s = r["sp"][tile][0].at[:, pl.ds(slot * config.keys, config.keys)]
  pl.when(j == 0)(lambda: plgpu.barrier_wait(r["q_full"].at[tile]))
  if tile == 0:  # the first tile is always present
    plgpu.barrier_wait(r["k_full"].at[stage])
  plgpu.tcgen05_mma(
    s, r["q_content"].at[tile], r["k_content"].at[stage].T, accumulate=False
  )
  plgpu.tcgen05_mma(
    s,
    r["q_rope"].at[tile],
    r["k_rope"].at[stage].T,
    r["s_full"].at[tile * config.slots + slot],
    accumulate=True,
  )


def _slot(block: _Block, item: _Item, j: Scalar) -> Scalar:
  """The slot of S in step `j` of an item."""
  return lax.rem(item.base + j, block.config.slots)


def _outputs(block: _Block, item: _Item, j: Scalar, tile: int) -> None:
  """Starts O += P V of step `j`."""
  r = block.refs
  stage = lax.rem(item.base + j, block.config.stages)
  value = r["k_content"] if block.widths.shared else r["v"]
  # The first P comes after the output of the item before was read.
  plgpu.barrier_wait(r["p_full"].at[tile])
  plgpu.tcgen05_mma(
    r["o"][tile],
    r["sp"][tile][1],
    value.at[stage],
    r["o_done"].at[tile],
    accumulate=j > 0,
  )
  if block.config.slots == 1:
    # The next S overwrites this P, and products that write to different memory
    # are not promised to run in order.
    plgpu.barrier_wait(r["o_done"].at[tile])


def _rescale(block: _Block, tile: int, factor: Float32[Array, "rows"]) -> None:
  """Multiplies O by a number per row, some columns at a time.

  All columns at once would take more registers than there are.
  """
  width = block.config.rescale
  for start in range(0, block.widths.value, width):
    size = min(width, block.widths.value - start)
    part = block.refs["o"][tile].at[:, pl.ds(start, size)]
    o = plgpu.async_load_tmem(part, layout=_NATIVE)
    plgpu.wait_load_tmem()
    o *= lax.broadcast_in_dim(factor, o.shape, [0])
    plgpu.async_store_tmem(part, o)


def _softmax(block: _Block, tile: int, out_gmem: jax.Ref) -> None:
  """Turns S into P and stores O; the work of the warpgroup of one tile."""
  r, config = block.refs, block.config

  def visit(item: _Item) -> None:
    carry = _row_of(config, LEAST), _row_of(config, 0.0)
    for segment in item.segments:

      def body(
        j: Scalar,
        carry: tuple[Array, Array],
        segment: _ItemSegment = segment,
      ) -> tuple[Array, Array]:
        count = segment.count[item.example, j]
        step = segment.before - item.base + j
        return _step(block, item, step, tile, count, *carry)

      carry = lax.fori_loop(0, segment.steps, body, carry)
    _, l = carry
    plgpu.barrier_wait(r["o_done"].at[tile])
    _rescale(block, tile, jnp.where(l > 0.0, 1.0 / l, 0.0))
    plgpu.commit_tmem()
    _store(block, item, tile, out_gmem)

  block.for_items(lambda item: pl.when(item.present[tile])(lambda: visit(item)))
  plgpu.wait_smem_to_gmem(0)


def _row_of(config: plan.Config, value: float) -> Float32[Array, "rows"]:
  """Makes one number for each query row of a tile."""
  row = jnp.full((config.rows,), value, jnp.float32)
  return plgpu.layout_cast(row, _ROW)


def _step(
  block: _Block,
  item: _Item,
  j: Scalar,
  tile: int,
  count: Scalar,
  m: Float32[Array, "rows"],
  l: Float32[Array, "rows"],
) -> tuple[Float32[Array, "rows"], Float32[Array, "rows"]]:
  """Takes the online softmax through one block of keys.

  Args:
    block: What all warps know.
    item: The work item.
    j: Step of the item.
    tile: Index of the tile.
    count: Keys of the block that are to be used.
    m: Maximum so far.
    l: Sum so far.

  Returns:
    The new maximum and the new sum.
  """
  r, config = block.refs, block.config
  s_ref, p_ref = r["sp"][tile]
  slot, shape = _slot(block, item, j), (config.rows, config.keys)
  plgpu.barrier_wait(r["s_full"].at[tile * config.slots + slot])
  s = plgpu.async_load_tmem(
    s_ref.at[:, pl.ds(slot * config.keys, config.keys)], layout=_NATIVE
  )
  plgpu.wait_load_tmem()

  def mask(s: Float32[Array, "rows keys"]) -> Float32[Array, "rows keys"]:
    lane = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=_NATIVE)
    return jnp.where(lane < count, s, reference.MASKED)

  # Most blocks are full, and comparing costs more than half as much as the rest
  # of the softmax, so only the others are masked.
  s = lax.cond(count < config.keys, mask, lambda s: s, s)
  grown = jnp.maximum(m, s.max(axis=1))
  m_new = jnp.where((grown - m) * block.scale > SLACK, grown, m)
  alpha = jnp.exp2((m - m_new) * block.scale)
  # The maximum is scaled before, so that a score takes one multiply-add.
  top = lax.broadcast_in_dim(m_new * block.scale, shape, [0])
  p = jnp.exp2(s * block.scale - top)
  l_new = alpha * l + p.sum(axis=1)

  @pl.when(j > 0)
  def correct() -> None:
    plgpu.barrier_wait(r["o_done"].at[tile])
    pl.when(jnp.min(alpha) < 1.0)(lambda: _rescale(block, tile, alpha))

  plgpu.async_store_tmem(p_ref, p.astype(p_ref.dtype))
  plgpu.commit_tmem()
  plgpu.barrier_arrive(r["p_full"].at[tile])
  return m_new, l_new


def _store(block: _Block, item: _Item, tile: int, out_gmem: jax.Ref) -> None:
  """Stores O through shared memory; TMA clips the rows past the end."""
  r, widths = block.refs, block.widths
  rows, smem = pl.ds(item.rows[tile], block.config.rows), r["out"].at[tile]
  for start in range(0, widths.value, widths.store):
    part = r["o"][tile].at[:, pl.ds(start, widths.store)]
    o = plgpu.async_load_tmem(part, layout=_OUT)
    plgpu.wait_load_tmem()
    # The columns before, perhaps of another item, may still be leaving this
    # memory.
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    smem[...] = o.astype(smem.dtype)
    plgpu.commit_smem()
    columns = pl.ds(item.head * widths.value + start, widths.store)
    plgpu.copy_smem_to_gmem(smem, out_gmem.at[item.example, rows, columns])


def kernel(
  *refs: jax.Ref,
  widths: plan.Widths,
  config: plan.Config,
  scale: float,
  rows: int,
  grid: tuple[int, int, int],
  **scratch: Any,
) -> None:
  """Gives every warp of a thread block its work.

  Args:
    *refs: Order of the rows of the batch, both queries, all arrays of each
      segment, and the output, as `pallas_mosaic_gpu` lays them out.
    widths: Channels of queries, keys and values.
    config: Sizes of the tiles.
    scale: Logit multiplier.
    rows: Query rows of a head.
    grid: Number of rows of the batch, of heads, and of items of a head.
    **scratch: Memories and barriers by the names of `plan.scratch`.
  """
  order, *queries = refs[:3]
  out_gmem = refs[-1]
  per_segment = 5 if widths.shared else 6
  inputs = list(itertools.batched(refs[3:-1], per_segment))
  block = _Block(
    widths=widths,
    config=config,
    scale=scale * LOG2_E,
    rows=rows,
    grid=grid,
    order=order,
    tables=[x[:3] for x in inputs],
    refs=scratch,
  )
  group = lax.axis_index("group")

  @pl.when(group == _LOAD_GROUP)
  def feed() -> None:
    if config.tiles > 1:
      plgpu.set_max_registers(plan.LOAD_REGISTERS, action="decrease")

    @plgpu.warp_map
    def per_warp(warp: Scalar) -> None:
      pl.when(warp == _TMA_WARP)(
        lambda: _load(block, queries, [x[3:] for x in inputs])
      )
      pl.when(warp == _MMA_WARP)(lambda: _multiply(block))

  for tile in block.tiles:

    @pl.when(group == 1 + tile)
    def consume(tile: int = tile) -> None:
      if config.tiles > 1:
        plgpu.set_max_registers(plan.SOFTMAX_REGISTERS, action="increase")
      _softmax(block, tile, out_gmem)
