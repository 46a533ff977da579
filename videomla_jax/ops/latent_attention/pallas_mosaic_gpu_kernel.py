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

What an item is and how keys arrive says `pallas_mosaic_gpu_items`. Each of them
goes on by itself: while the softmax finishes an item, the next one's queries
and first keys arrive and its first scores are multiplied.
"""

import functools

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Float32

from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config as plan
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_items as items
from videomla_jax.ops.latent_attention import reference

# By how much, in base 2, scores may exceed what is taken for their maximum. It
# cancels out in P V / l. Without slack all of O would be rescaled whenever one
# of 128 rows has a new maximum: in 9 of 10 blocks of random scores, of 85.
SLACK = 8.0

_NATIVE = plgpu.Layout.TCGEN05_TMEM_NATIVE
_ROW = _NATIVE.reduce(1)
_OUT = plgpu.Layout.TCGEN05
_TMA_WARP, _MMA_WARP = 0, 1
_LOAD_GROUP = 0  # the others are softmax groups, one for each tile


def _multiply(block: items.Block) -> None:
  """Starts all products of every item; the work of the MMA warp."""
  r, config = block.refs, block.config

  def visit(item: items.Item) -> None:
    def scores(j: items.Scalar, t: int) -> None:
      multiply = functools.partial(_scores, block, item, j, t)
      pl.when(item.present[t] & (j < item.steps))(multiply)
      if t == config.tiles - 1:
        pl.when(j + 1 == item.steps)(
          lambda: plgpu.tcgen05_commit_arrive(r["q_free"])
        )

    def step(j: items.Scalar, _: None) -> None:
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


def _scores(
  block: items.Block, item: items.Item, j: items.Scalar, tile: int
) -> None:
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


def _slot(
  block: items.Block, item: items.Item, j: items.Scalar
) -> items.Scalar:
  """The slot of S in step `j` of an item."""
  return lax.rem(item.base + j, block.config.slots)


def _outputs(
  block: items.Block, item: items.Item, j: items.Scalar, tile: int
) -> None:
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


def _rescale(
  block: items.Block, tile: int, factor: Float32[Array, "rows"]
) -> None:
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


def _softmax(block: items.Block, tile: int) -> None:
  """Turns S into P and stores O; the work of the warpgroup of one tile."""
  r, config = block.refs, block.config

  def visit(item: items.Item) -> None:
    carry = _row_of(config, items.LEAST), _row_of(config, 0.0)
    for segment in item.segments:

      def body(
        j: items.Scalar,
        carry: tuple[Array, Array],
        segment: items.ItemSegment = segment,
      ) -> tuple[Array, Array]:
        count = segment.count[item.example, j]
        step = segment.before - item.base + j
        return _step(block, item, step, tile, count, *carry)

      carry = lax.fori_loop(0, segment.steps, body, carry)
    _, l = carry
    plgpu.barrier_wait(r["o_done"].at[tile])
    _rescale(block, tile, jnp.where(l > 0.0, 1.0 / l, 0.0))
    plgpu.commit_tmem()
    _store(block, item, tile)

  block.for_items(lambda item: pl.when(item.present[tile])(lambda: visit(item)))
  plgpu.wait_smem_to_gmem(0)


def _row_of(config: plan.Config, value: float) -> Float32[Array, "rows"]:
  """Makes one number for each query row of a tile."""
  row = jnp.full((config.rows,), value, jnp.float32)
  return plgpu.layout_cast(row, _ROW)


def _step(
  block: items.Block,
  item: items.Item,
  j: items.Scalar,
  tile: int,
  count: items.Scalar,
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


def _store(block: items.Block, item: items.Item, tile: int) -> None:
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
    plgpu.copy_smem_to_gmem(smem, block.out.at[item.example, rows, columns])


def kernel(block: items.Block) -> None:
  """Gives every warp of a thread block its work.

  Args:
    block: What all warps know.
  """
  config = block.config
  group = lax.axis_index("group")

  @pl.when(group == _LOAD_GROUP)
  def feed() -> None:
    if config.tiles > 1:
      plgpu.set_max_registers(plan.LOAD_REGISTERS, action="decrease")

    @plgpu.warp_map
    def per_warp(warp: items.Scalar) -> None:
      pl.when(warp == _TMA_WARP)(lambda: items.load(block))
      pl.when(warp == _MMA_WARP)(lambda: _multiply(block))

  for tile in block.tiles:

    @pl.when(group == 1 + tile)
    def consume(tile: int = tile) -> None:
      if config.tiles > 1:
        plgpu.set_max_registers(plan.SOFTMAX_REGISTERS, action="increase")
      _softmax(block, tile)
