"""The Hopper kernel: what the warpgroups of a thread block do, in what order.

One thread block per multiprocessor walks through work items
(`pallas_mosaic_gpu_items`): two tiles of 64 query rows of one head that share
every block of keys. Three warpgroups hand work on to each other by barriers:

  load       queries once an item, blocks of keys and of values into rings
  consumers  one for each tile:
               S_{j+1} = Q K_{j+1}ᵀ   (content and shared positional part)
               O += P_j V_j           both started, and only S waited for
               m' = max(m, S_{j+1}), P_{j+1} = 2^(S_{j+1} - m')
               O *= 2^(m - m')        once the second product is done

Products are asynchronous, and S, P and O are registers. So the softmax of a
step runs beside the second product of the step before. Two consumers also take
turns in starting products, and then one's products run beside the softmax of
the other, too.

A block of keys is free as soon as its scores are there, and a block of values
one step later. Where the value is the content itself (absorbed form) the very
block of shared memory that served as K serves as V, and is free after that.
Keys of dense layers have no positional part, which then is left out.
"""

import functools
from typing import Any

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config as plan
from videomla_jax.ops.latent_attention import (
  pallas_mosaic_gpu_hopper_config as hopper_plan,
)
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_items as items
from videomla_jax.ops.latent_attention import reference

# Registers that products add to; Mosaic's type is internal.
Accumulator = Any

_LAYOUT = plgpu.Layout.WGMMA
_ROW = _LAYOUT.reduce(1)
_LOAD_GROUP = 0  # the others are consumers, one for each tile
NO_KEYS = 1e30  # the logarithm of the sum of a row without valid keys


def _row_of(config: plan.Config, value: float) -> Float32[Array, "rows"]:
  """Makes one number for each query row of a tile."""
  row = jnp.full((config.rows,), value, jnp.float32)
  return plgpu.layout_cast(row, _ROW)


def _stage(
  block: items.Block, item: items.Item, j: items.Scalar
) -> items.Scalar:
  """The stage of the rings in step `j` of an item."""
  return lax.rem(item.base + j, block.config.stages)


def _start_scores(
  block: items.Block, tile: items.Scalar, stage: items.Scalar, s: Accumulator
) -> None:
  """Starts S += Q Kᵀ, once the keys are there."""
  r = block.refs
  plgpu.barrier_wait(r["k_full"].at[stage])
  for name in block.queries:
    keys = r[name.replace("q_", "k_")].at[stage]
    plgpu.wgmma(s, r[name].at[tile], keys.T)


def _ready(block: items.Block, tile: items.Scalar, stage: items.Scalar) -> None:
  """Waits for the values of a stage, and for the turn to start products."""
  r = block.refs
  if not block.widths.shared:
    plgpu.barrier_wait(r["v_full"].at[stage])
  if block.config.tiles > 1:
    plgpu.barrier_wait(r["turn"].at[tile])


def _start_outputs(
  block: items.Block,
  tile: items.Scalar,
  stage: items.Scalar,
  p: Float[Array, "rows keys"],
  o: Accumulator,
) -> None:
  """Starts O += P V, the last product of a turn."""
  r = block.refs
  value = r["k_content"] if block.widths.shared else r["v"]
  plgpu.wgmma(o, p, value.at[stage])
  if block.config.tiles > 1:
    plgpu.barrier_arrive(r["turn"].at[1 - tile])


def _free(block: items.Block, stage: items.Scalar, *, after: str) -> None:
  """Says that this warpgroup has done with a stage of one of the rings.

  Args:
    block: What all warps know.
    stage: The stage.
    after: The product that is done, "scores" or "outputs".
  """
  ring = "k" if after == "scores" or block.widths.shared else "v"
  if after == "outputs" or not block.widths.shared:
    plgpu.barrier_arrive(block.refs[f"{ring}_free"].at[stage])


def done(
  accumulator: Accumulator, *, still_running: int
) -> Float32[Array, "rows columns"]:
  """Waits for products and returns what they made.

  The barrier keeps the compiler from reading the registers before.

  Args:
    accumulator: What the products add to.
    still_running: Products that may go on, those that were started last.
  """
  value = plgpu.wgmma_accumulator_load(accumulator, wait_n=still_running)
  return lax.optimization_barrier(value)


def _softmax(
  block: items.Block,
  count: items.Scalar,
  s: Float32[Array, "rows keys"],
  m: Float32[Array, "rows"],
  l: Float32[Array, "rows"],
) -> tuple[Array, Array, Array, Array]:
  """Takes the online softmax through one block of keys.

  Args:
    block: What all warps know.
    count: Keys of the block that are to be used.
    s: Scores.
    m: Maximum so far.
    l: Sum so far.

  Returns:
    Probabilities, the factor of what came before, the new maximum and sum.
  """

  def mask(s: Float32[Array, "rows keys"]) -> Float32[Array, "rows keys"]:
    lane = plgpu.broadcasted_iota(jnp.int32, s.shape, 1, layout=_LAYOUT)
    return jnp.where(lane < count, s, reference.MASKED)

  # Most blocks are full, and only the others are masked.
  s = lax.cond(count < block.config.keys, mask, lambda s: s, s)
  m_new = jnp.maximum(m, s.max(axis=1))
  alpha = jnp.exp2((m - m_new) * block.scale)
  # The maximum is scaled before, so that a score takes one multiply-add.
  top = lax.broadcast_in_dim(m_new * block.scale, s.shape, [0])
  p = jnp.exp2(s * block.scale - top)
  l_new = alpha * l + p.sum(axis=1)
  return p, alpha, m_new, l_new


def _attend(
  block: items.Block, item: items.Item, tile: items.Scalar, o: Accumulator
) -> None:
  """Computes one tile of an item and starts to store it.

  Args:
    block: What all warps know.
    item: The work item.
    tile: Index of the tile.
    o: Accumulator of the output, zero.
  """
  config, r, dtype = block.config, block.refs, block.out.dtype
  scores = plgpu.ACC((config.rows, config.keys), jnp.float32)

  def first_scores(s: Accumulator) -> Float32[Array, "rows keys"]:
    _start_scores(block, tile, _stage(block, item, 0), s)
    return done(s, still_running=0)

  row = item.rows[0] + tile * config.rows
  # Whatever is multiplied for a tile without rows is not stored.
  present = row < block.rows
  pl.when(present)(lambda: plgpu.barrier_wait(r["q_full"].at[tile]))
  s = pl.run_scoped(first_scores, scores)
  _free(block, _stage(block, item, 0), after="scores")
  p, _, m, l = _softmax(
    block, item.count(0), s, _row_of(config, items.LEAST), _row_of(config, 0.0)
  )
  _ready(block, tile, _stage(block, item, 0))

  def step(
    j: items.Scalar, carry: tuple[Array, Array, Array]
  ) -> tuple[Array, Array, Array]:
    p, m, l = carry
    count = item.count(j + 1)  # which is read while products run
    now, following = _stage(block, item, j), _stage(block, item, j + 1)

    def products(s: Accumulator) -> Float32[Array, "rows keys"]:
      _start_scores(block, tile, following, s)
      _start_outputs(block, tile, now, p, o)
      return done(s, still_running=1)

    s = pl.run_scoped(products, scores)
    _free(block, following, after="scores")
    p, alpha, m, l = lax.optimization_barrier(_softmax(block, count, s, m, l))
    # Waiting for something else keeps ptxas from waiting for the product before
    # the softmax, as it would do otherwise.
    _ready(block, tile, following)
    out = done(o, still_running=0)
    _free(block, now, after="outputs")
    # It is rounded only now: the product that is done has read the P before,
    # and the compiler would start one product after the other if this P took
    # its registers meanwhile.
    p, out = lax.optimization_barrier((p, out))
    o[...] = out * lax.broadcast_in_dim(alpha, out.shape, [0])
    return p.astype(dtype), m, l

  carry = (p.astype(dtype), m, l)
  p, m, l = lax.fori_loop(0, item.steps - 1, step, carry)
  plgpu.barrier_arrive(r["q_free"])
  last = _stage(block, item, item.steps - 1)
  _start_outputs(block, tile, last, p, o)
  out = done(o, still_running=0)
  _free(block, last, after="outputs")
  factor = jnp.where(l > 0.0, 1.0 / l, 0.0)
  out = out * lax.broadcast_in_dim(factor, out.shape, [0])
  pl.when(present)(lambda: _store(block, item, row, tile, out, m, l))


def _store(
  block: items.Block,
  item: items.Item,
  row: items.Scalar,
  tile: items.Scalar,
  out: Float32[Array, "rows columns"],
  m: Float32[Array, "rows"],
  l: Float32[Array, "rows"],
) -> None:
  """Stores a tile through shared memory; TMA clips the rows past the end.

  Args:
    block: What all warps know.
    item: The work item.
    row: First row of the tile.
    tile: Index of the tile.
    out: Values.
    m: Largest score of each row.
    l: Sum of 2^(s - m) over the keys of each row.
  """
  smem = block.refs["out"].at[tile]
  # The item before may still be leaving this memory.
  plgpu.wait_smem_to_gmem(0, wait_read_only=True)
  smem[...] = out.astype(smem.dtype)
  plgpu.commit_smem()
  rows = pl.ds(row, block.config.rows)
  if block.log_sum is not None:
    # A row without keys gets one at which 2^(s - L) is zero for every score.
    log_sum = jnp.where(l > 0.0, m * block.scale + jnp.log2(l), NO_KEYS)
    block.log_sum[item.example, item.head, rows] = log_sum
  columns = item.columns(block.widths.value)
  plgpu.copy_smem_to_gmem(smem, block.out.at[item.example, rows, columns])


def _consume(block: items.Block, tile: items.Scalar) -> None:
  """Computes one tile of every item; the work of a consumer."""
  config = block.config
  width = block.widths.value

  def visit(item: items.Item) -> None:
    pl.run_scoped(
      functools.partial(_attend, block, item, tile),
      plgpu.ACC((config.rows, width), jnp.float32),
    )

  if config.tiles > 1:
    first_turn = block.refs["turn"].at[0]
    pl.when(tile == 1)(lambda: plgpu.barrier_arrive(first_turn))
  block.for_items(visit)
  plgpu.wait_smem_to_gmem(0)
  if config.tiles > 1:
    # The other has given back the turn, and no barrier must be left so.
    pl.when(tile == 0)(lambda: plgpu.barrier_wait(first_turn))


def kernel(block: items.Block) -> None:
  """Gives every warpgroup of a thread block its work.

  Args:
    block: What all warps know.
  """
  config = block.config
  group = lax.axis_index("group")

  @pl.when(group == _LOAD_GROUP)
  def feed() -> None:
    if config.tiles > 1:
      plgpu.set_max_registers(hopper_plan.LOAD_REGISTERS, action="decrease")
    items.load(block)

  # Both consumers run the same instructions.
  @pl.when(group > _LOAD_GROUP)
  def consume() -> None:
    if config.tiles > 1:
      plgpu.set_max_registers(hopper_plan.CONSUMER_REGISTERS, action="increase")
    _consume(block, group - 1)
