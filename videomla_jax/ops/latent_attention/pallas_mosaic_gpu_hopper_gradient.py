"""The gradient kernels for Hopper: what the warpgroups of a thread block do.

FlashAttention-2 (arXiv:2307.08691), from the base-2 logarithm of the sum L that
the forward pass saved, and from delta = Σ do o:

  p = 2^(s - L)    dp = do Vᵀ    ds = p (dp - delta)
  dV = pᵀ do       dK = dsᵀ Q    dQ = ds K

One program makes dQ, another one dK and dV. So every sum is made by one thread
in one order, and repeated runs give the same bits. In both, tiles of 64 rows
stay in shared memory while blocks of 64 rows come by through a ring:

           rows that stay   rows that come by   sums
  dQ       Q and do         K and V             dQ += ds K
  dK, dV   K and V          Q and do            dK += dsᵀ Q,  dV += pᵀ do

Scores of a tile are S = Q Kᵀ or K Qᵀ, so p and ds are where the sums need them,
in registers, and nothing is transposed. One warpgroup loads, and each of the
others has a tile. Products are asynchronous, and a step of a consumer is

  start S, start dP
  wait for S, compute p        while dP is multiplied
  start dV                     for keys
  wait for dP, compute ds      while dV is multiplied
  start dQ or dK

The sum dQ runs on while the next step starts. For dK and dV there are no
registers for that, and the step waits for them.

A row of keys enters no sum but its own. So keys that no query may see are
computed like all others, and zeros are stored for them. Query rows past the end
are zeros and add nothing.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import itertools
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Float32

from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config as plan
from videomla_jax.ops.latent_attention import (
  pallas_mosaic_gpu_hopper as forward,
)
from videomla_jax.ops.latent_attention import (
  pallas_mosaic_gpu_hopper_gradient_config as gradient_plan,
)
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_items as items

Part = Any  # of a memory; its type is internal

_LAYOUT = plgpu.Layout.WGMMA
_LOAD_GROUP = 0  # the others are consumers, one for each tile


@dataclasses.dataclass(frozen=True)
class Stream:
  """Blocks of rows that come by, of one segment.

  Attributes:
    arrays: Arrays by the names of memories.
    steps: Number of blocks.
    start: First row of each block of each row of the batch, in tiles of rows;
      None if the blocks follow each other.
    count: Rows of each block that are to be used; None if they all are.
  """

  arrays: Mapping[str, jax.Ref]
  steps: items.Scalar
  start: jax.Ref | None = None
  count: jax.Ref | None = None


@dataclasses.dataclass(frozen=True)
class Rows:
  """Rows that stay, of one segment.

  Attributes:
    arrays: Arrays by the names of memories.
    outs: Their gradients, likewise.
    count: Number of rows of a head.
    before: Thread blocks of a head that have rows of other segments before.
  """

  arrays: Mapping[str, jax.Ref]
  outs: Mapping[str, jax.Ref]
  count: int
  before: int


@dataclasses.dataclass(frozen=True)
class Block:
  """What all warps of a thread block know.

  Attributes:
    widths: Channels of queries, keys and values.
    config: Sizes of the work.
    scale: Logit multiplier.
    example: Index of the row of the batch.
    head: Index of the head.
    index: Index of the thread block among those of the head.
    stays: Rows that stay; a thread block has those of one segment.
    streams: Blocks that come by, one after the other.
    refs: Memories and barriers by the names of the plan's `scratch`.
  """

  widths: plan.Widths
  config: gradient_plan.Config
  scale: float
  example: items.Scalar
  head: items.Scalar
  index: items.Scalar
  stays: Sequence[Rows]
  streams: Sequence[Stream]
  refs: dict[str, Any]

  @property
  def steps(self) -> items.Scalar:
    """Number of blocks that come by."""
    return sum((s.steps for s in self.streams), start=jnp.int32(0))

  def stage(self, step: items.Scalar) -> items.Scalar:
    """The stage of the ring in a step."""
    return lax.rem(step, self.config.stages)

  def first(self, rows: Rows, tile: items.Scalar) -> items.Scalar:
    """Returns the first row of a tile, if it has rows of this segment."""
    tiles = (self.index - rows.before) * self.config.tiles + tile
    return tiles * self.config.rows

  def has(self, rows: Rows, tile: items.Scalar) -> items.Scalar:
    """Tells whether a tile has rows of a segment."""
    first = self.first(rows, tile)
    return (first >= 0) & (first < rows.count)

  def part(
    self, array: jax.Ref, name: str, first: items.Scalar, count: int
  ) -> Part:
    """Returns rows of an array, of this head unless all heads share them.

    Args:
      array: The whole array.
      name: Name of its memory, without the side.
      first: First row.
      count: Number of rows.
    """
    rows = pl.ds(first, count)
    if name == "lines":
      return array.at[self.example, self.head, :, rows]
    width = gradient_plan.memories(self.widths).get(name)
    if width is None or array.shape[-1] == width:
      return array.at[self.example, rows]
    return array.at[self.example, rows, pl.ds(self.head * width, width)]


def _load(block: Block) -> None:
  """Loads the tiles once, and every block that comes by."""
  config, r = block.config, block.refs

  def load_tile(rows: Rows, tile: int) -> None:
    for name, array in rows.arrays.items():
      source = block.part(array, name, block.first(rows, tile), config.rows)
      smem = r[f"tile_{name}"].at[tile]
      plgpu.copy_gmem_to_smem(source, smem, r["tile_full"].at[tile])

  for rows, tile in itertools.product(block.stays, range(config.tiles)):
    pl.when(block.has(rows, tile))(functools.partial(load_tile, rows, tile))
  before: items.Scalar = jnp.int32(0)
  for stream in block.streams:

    def load_block(
      j: items.Scalar,
      _: None,
      stream: Stream = stream,
      before: items.Scalar = before,
    ) -> None:
      step = before + j
      stage = block.stage(step)
      free = functools.partial(plgpu.barrier_wait, r["block_free"].at[stage])
      pl.when(step >= config.stages)(free)
      first = j * config.block
      if stream.start is not None:
        first = stream.start[block.example, j] * plan.TILE_ROWS
      for name, array in stream.arrays.items():
        source = block.part(array, name, first, config.block)
        smem = r[f"block_{name}"].at[stage]
        plgpu.copy_gmem_to_smem(source, smem, r["block_full"].at[stage])

    lax.fori_loop(0, stream.steps, load_block, None)
    before = before + stream.steps

  # No barrier must be left in the middle of a phase.
  def drain(step: items.Scalar, _: None) -> None:
    plgpu.barrier_wait(r["block_free"].at[block.stage(step)])

  lax.fori_loop(lax.max(before - config.stages, 0), before, drain, None)


def _count(block: Block, step: items.Scalar) -> items.Scalar:
  """Reads how many rows of a block are to be used."""
  count, before = jnp.int32(block.config.block), jnp.int32(0)
  for stream in block.streams:
    if stream.count is not None:
      j = step - before
      inside = (j >= 0) & (j < stream.steps)
      found = stream.count[block.example, jnp.where(inside, j, 0)]
      count = jnp.where(inside, found, count)
    before = before + stream.steps
  return count


def _line(
  ref: Part, shape: tuple[int, ...], *, axis: int
) -> Float32[Array, "rows block"]:
  """Loads a number for each row or column of a matrix, and repeats it."""
  # What is left of the layout of a matrix is that of its axis.
  line = plgpu.load(ref, layout=_LAYOUT.reduce(1 - axis))
  return lax.broadcast_in_dim(line, shape, [axis])


def _step(
  block: Block,
  tile: items.Scalar,
  step: items.Scalar,
  rows: Mapping[str, Part],
  sums: Mapping[str, forward.Accumulator],
) -> None:
  """Adds what one block contributes.

  Args:
    block: What all warps know.
    tile: Index of the tile.
    step: Index of the block that has come by.
    rows: The tile, by the names of memories.
    sums: Accumulators of the gradients.
  """
  config, r, dtype = block.config, block.refs, block.refs["tile_value"].dtype
  stage, shape = block.stage(step), (config.rows, config.block)
  memory = lambda name: r[f"block_{name}"].at[stage]
  keys = [name for name in sums if name != "value"]
  count = _count(block, step)  # which is read while products run
  if config.of_keys:
    line = lambda i: _line(r["block_lines"].at[stage, i], shape, axis=1)
  else:
    line = lambda i: _line(r["tile_lines"].at[tile, i], shape, axis=0)

  def free(step: items.Scalar) -> None:
    plgpu.barrier_arrive(r["block_free"].at[block.stage(step)])

  def products(
    s: forward.Accumulator, dp: forward.Accumulator
  ) -> Float32[Array, "rows block"]:
    for name in keys:
      plgpu.wgmma(s, rows[name], memory(name).T)
    plgpu.wgmma(dp, rows["value"], memory("value").T)
    score = forward.done(s, still_running=1)
    if not config.of_keys:
      # Products are done in their order: those of the step before are, too.
      pl.when(step > 0)(lambda: free(step - 1))
    p = jnp.exp2(score * (block.scale * items.LOG2_E) - line(0))
    if not config.of_keys:
      # That it branches keeps ptxas from waiting for dP before it computes p.
      p = _masked(lax.optimization_barrier(p), count)
    if "value" in sums:
      plgpu.wgmma(sums["value"], p.astype(dtype), memory("value"))
    dp = forward.done(dp, still_running=int("value" in sums))
    return p * (dp - line(1))

  accumulator = plgpu.ACC(shape, jnp.float32)
  plgpu.barrier_wait(r["block_full"].at[stage])
  ds = pl.run_scoped(products, accumulator, accumulator).astype(dtype)
  for name in keys:
    plgpu.wgmma(sums[name], ds, memory(name))
  if config.of_keys:
    # What was read as numbers must be read before a copy writes there again.
    plgpu.commit_smem()
    # There are no registers for the next S and dP beside p and ds. (The
    # interpreter does not know `wgmma_wait`.)
    plgpu.wgmma_accumulator_load(sums["content"], wait_n=0)
    free(step)


def _masked(
  p: Float32[Array, "rows block"], count: items.Scalar
) -> Float32[Array, "rows block"]:
  """Makes zeros of all columns but the first ones.

  Args:
    p: Probabilities.
    count: Columns that are to be used; all of most blocks.
  """

  def mask(p: Float32[Array, "rows block"]) -> Float32[Array, "rows block"]:
    lane = plgpu.broadcasted_iota(jnp.int32, p.shape, 1, layout=_LAYOUT)
    return jnp.where(lane < count, p, 0.0)

  return lax.cond(count < p.shape[1], mask, lambda p: p, p)


def _consume(
  block: Block, tile: items.Scalar, **sums: forward.Accumulator
) -> None:
  """Computes the gradients of one tile and stores them.

  Args:
    block: What all warps know.
    tile: Index of the tile.
    **sums: Accumulators of the gradients, zero.
  """
  r, steps = block.refs, block.steps
  # Whatever is multiplied for a tile without rows is not stored.
  present = functools.reduce(
    jnp.logical_or, [block.has(rows, tile) for rows in block.stays]
  )
  pl.when(present)(lambda: plgpu.barrier_wait(r["tile_full"].at[tile]))

  names = gradient_plan.memories(block.widths)
  rows: dict[str, Part] = {n: r[f"tile_{n}"].at[tile] for n in names}
  if not block.config.of_keys and names["value"] <= gradient_plan.MAX_HELD:
    # A product of 64 x 64 whose factors both are in shared memory reads it as
    # fast as it can be read, and there are registers for one of the factors.
    rows["value"] = plgpu.load(rows["value"], layout=_LAYOUT)

  def step(j: items.Scalar, _: None) -> None:
    _step(block, tile, j, rows, sums)

  lax.fori_loop(0, steps, step, None)
  done = {n: forward.done(total, still_running=0) for n, total in sums.items()}
  if not block.config.of_keys:
    last = r["block_free"].at[block.stage(steps - 1)]
    pl.when(steps > 0)(lambda: plgpu.barrier_arrive(last))
  _store(block, tile, done)


def _store(
  block: Block,
  tile: items.Scalar,
  gradients: Mapping[str, Float32[Array, "rows columns"]],
) -> None:
  """Stores gradients through the tile; TMA clips rows past the end."""
  r, config = block.refs, block.config
  memory = lambda name: r.get(f"out_{name}", r[f"tile_{name}"]).at[tile]

  def copy(rows: Rows) -> None:
    for name, out in rows.outs.items():
      target = block.part(out, name, block.first(rows, tile), config.rows)
      plgpu.copy_smem_to_gmem(memory(name), target)

  for name, gradient in gradients.items():
    if name != "value":
      gradient = gradient * block.scale
    if config.of_keys:
      seen = _line(r["tile_seen"].at[tile], gradient.shape, axis=0)
      gradient = jnp.where(seen > 0.0, gradient, 0.0)
    smem = memory(name)
    smem[...] = gradient.astype(smem.dtype)
  plgpu.commit_smem()
  for rows in block.stays:
    pl.when(block.has(rows, tile))(functools.partial(copy, rows))
  plgpu.wait_smem_to_gmem(0)


def kernel(block: Block) -> None:
  """Gives every warpgroup of a thread block its work.

  Args:
    block: What all warps know.
  """
  config = block.config
  group = lax.axis_index("group")

  @pl.when(group == _LOAD_GROUP)
  def feed() -> None:
    plgpu.set_max_registers(gradient_plan.LOAD_REGISTERS, action="decrease")
    _load(block)

  @pl.when(group > _LOAD_GROUP)
  def consume() -> None:
    plgpu.set_max_registers(gradient_plan.CONSUMER_REGISTERS, action="increase")
    widths = gradient_plan.memories(block.widths)
    pl.run_scoped(
      functools.partial(_consume, block, group - 1),
      **{
        n: plgpu.ACC((config.rows, widths[n]), jnp.float32)
        for n in block.stays[0].outs
      },
    )
