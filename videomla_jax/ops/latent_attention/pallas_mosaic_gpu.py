"""Flash attention for Blackwell (sm_100a) in Pallas Mosaic GPU.

One thread block per multiprocessor walks through work items: one or two tiles
of query rows of one head that visit all keys of its stream. Actors in two or
three warpgroups hand work on through barriers:

  TMA warp   loads queries once an item, blocks of keys into a ring of stages
  MMA warp   S_j = Q K_jᵀ (two products: content and shared positional part),
             O += P_j V_j
  softmax    m' = max(m, S_j), P_j = 2^(S_j - m'), O *= 2^(m - m') if m grew
             by more than `SLACK`, or else m' = m; a warpgroup for each tile

The softmax should never wait for a product. One tile has two slots for S, so
S_{j+1} is multiplied beside softmax j. Two tiles take turns: each has one S,
which P overwrites, and is multiplied beside the softmax of the other.

S, P and O live in tensor memory. Where the value is the content itself
(absorbed form) the very block of shared memory that served as K serves as V.
The positional key is shared by all heads and never copied to them.

Actors walk on by themselves: while the softmax finishes an item, the next one's
queries and first keys arrive and its first scores are multiplied. A slot's turn
and a barrier's phase follow from the number of key blocks since the start of
the kernel, which every actor counts. Items of a head are neighbours, and so are
heads of a stream: what runs together reads the same keys, from the L2 cache
(absorbed: one set for all heads). Streams with the most keys come first, which
keeps short the time at the end when some multiprocessors have no item left.

Which keys are visited is decided outside (`blocks.table_of`): a block has a
first key and a number of keys that are its own. TMA fills rows past the end
with zeros and does not write them, so no size needs padding; frames of several
must be a multiple of 8 tokens.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Float

from videomla_jax.ops.latent_attention import blocks
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config as plan
from videomla_jax.ops.latent_attention import pallas_triton
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import types

LOG2_E = math.log2(math.e)
# First maximum. Far above a masked score, whose exponential is then zero even
# where there is no other score.
LEAST = reference.MASKED * 1e-10
# By how much, in base 2, scores may exceed what is taken for their maximum: it
# cancels out in P V / l. With 85 blocks of random scores, some of 128 rows have
# a new maximum in 9 of 10 blocks, and then all of O is rescaled.
SLACK = 8.0
DTYPES = ("bfloat16", "float16")

_NATIVE = plgpu.Layout.TCGEN05_TMEM_NATIVE
_ROW = _NATIVE.reduce(1)
_OUT = plgpu.Layout.TCGEN05
_TMA_WARP, _MMA_WARP = 0, 1
_LOAD_GROUP = 0  # the others are softmax groups, one for each tile


def _widths(queries, segments) -> plan.Widths:
  """Widths of a call; raises `NotImplementedError` if they cannot be taken."""
  forms.check("pallas_mosaic_gpu", queries, segments, dtypes=DTYPES)
  for s in segments:
    if s.valid.shape[1] > 1 and s.validity_block % plan.TILE_ROWS:
      raise NotImplementedError(
        f"pallas_mosaic_gpu: frames of {s.validity_block} keys are no multiple "
        f"of {plan.TILE_ROWS}"
      )
  first = segments[0]
  widths = plan.Widths(
    content=first.content.shape[-1],
    rope=first.rope.shape[-1],
    value=first.values.shape[-1],
    shared=first.value is None,
  )
  for width in (widths.content, widths.rope, widths.value):
    if width % 16:
      raise NotImplementedError(
        f"pallas_mosaic_gpu: width {width} is no multiple of 16"
      )
  return widths


@dataclasses.dataclass(frozen=True)
class _Item:
  """Tiles of query rows and the keys that they visit.

  Attributes:
    stream: Index of the stream.
    head: Index of the head.
    rows: First row of every tile.
    present: True for tiles that have rows.
    follows: False for the first item of a thread block.
    base: Steps (blocks of keys) of all items before; slots and phases go on.
    segments: Of each segment: index, start and count refs, steps, and steps
      since the start of the kernel.
    steps: Steps of this item.
  """

  stream: Any
  head: Any
  rows: list[Any]
  present: list[Any]
  follows: Any
  base: Any
  segments: list[tuple[int, Any, Any, Any, Any]]
  steps: Any

  def columns(self, width: int):
    """Those of the head."""
    return pl.ds(self.head * width, width)


@dataclasses.dataclass(frozen=True)
class _Block:
  """What the actors of one thread block share.

  Attributes:
    widths: Channels.
    config: Block sizes.
    scale: Logit multiplier in base 2.
    rows: Query rows of a head.
    grid: Number of streams, heads and items of a head.
    order: Streams, the one with the most keys first.
    tables: Start (in tiles of rows), count and number of blocks of each
      segment.
    refs: Scratch by name.
  """

  widths: plan.Widths
  config: plan.Config
  scale: float
  rows: int
  grid: tuple[int, int, int]
  order: Any
  tables: list[tuple[Any, Any, Any]]
  refs: dict[str, Any]

  @property
  def tiles(self) -> range:
    """Indices of the tiles of an item."""
    return range(self.config.tiles)

  def _item(self, info, base):
    place, head, index = info.index
    stream = self.order[place]
    step, segments = base, []
    for i, (start, count, number) in enumerate(self.tables):
      segments.append((i, start, count, number[stream], step))
      step = step + number[stream]
    rows = [
      index * self.config.item_rows + t * self.config.rows for t in self.tiles
    ]
    return _Item(
      stream=stream,
      head=head,
      rows=rows,
      present=[row < self.rows for row in rows],
      follows=info.local_index > 0,
      base=base,
      segments=segments,
      steps=step - base,
    )

  def for_items(self, visit):
    """Calls `visit` for every item of this thread block; returns all steps."""

    @plgpu.nd_loop(self.grid, collective_axes="block", init_carry=jnp.int32(0))
    def steps(info, carry):
      item = self._item(info, carry)
      visit(item)
      return carry + item.steps

    return steps


def _load(block: _Block, queries, segments):
  """The TMA warp."""
  r, stages = block.refs, block.config.stages

  def visit(item):
    # Scores of the item before are done with the memory before its softmax is.
    pl.when(item.follows)(lambda: plgpu.barrier_wait(r["q_free"]))
    for t in block.tiles:
      load_tile = functools.partial(_load_queries, block, item, t, queries)
      pl.when(item.present[t])(load_tile)
    for i, start, _, number, before in item.segments:

      def load(j, _, start=start, before=before, arrays=segments[i]):
        first = start[item.stream, j] * plan.TILE_ROWS
        _load_keys(block, item, arrays, first, before + j)

      lax.fori_loop(0, number, load, None)

  steps = block.for_items(visit)

  # Every phase of a barrier must be waited for.
  def drain(step, _):
    plgpu.barrier_wait(r["k_free"].at[lax.rem(step, stages)])

  lax.fori_loop(lax.max(steps - stages, 0), steps, drain, None)
  plgpu.barrier_wait(r["q_free"])


def _load_queries(block: _Block, item, tile, queries):
  """Queries of a tile."""
  r = block.refs
  rows = pl.ds(item.rows[tile], block.config.rows)
  for gmem, smem in zip(queries, (r["q_content"], r["q_rope"]), strict=True):
    own = gmem.at[item.stream, rows, item.columns(smem.shape[-1])]
    plgpu.copy_gmem_to_smem(own, smem.at[tile], r["q_full"].at[tile])


def _load_keys(block: _Block, item, arrays, first, step):
  """Content, positional part and perhaps values of a step into its stage."""
  r, stages = block.refs, block.config.stages
  slot = lax.rem(step, stages)

  @pl.when(step >= stages)
  def wait_for_room():
    plgpu.barrier_wait(r["k_free"].at[slot])

  content, rope, *value = arrays
  own, full = pl.ds(first, block.config.keys), r["k_full"].at[slot]
  plgpu.copy_gmem_to_smem(
    content.at[item.stream, own, item.columns(block.widths.content)],
    r["k_content"].at[slot],
    full,
  )
  plgpu.copy_gmem_to_smem(rope.at[item.stream, own], r["k_rope"].at[slot], full)
  for v in value:
    plgpu.copy_gmem_to_smem(
      v.at[item.stream, own, item.columns(block.widths.value)],
      r["v"].at[slot],
      full,
    )


def _multiply(block: _Block):
  """The MMA warp."""
  r, config = block.refs, block.config

  def visit(item):
    def scores(j, t):
      multiply = functools.partial(_scores, block, item, j, t)
      pl.when(item.present[t] & (j < item.steps))(multiply)
      if t == config.tiles - 1:
        pl.when(j + 1 == item.steps)(
          lambda: plgpu.tcgen05_commit_arrive(r["q_free"])
        )

    def step(j, _):
      for t in block.tiles:
        # S_{j+1} before O_j: the softmax of j runs meanwhile. Its slot held
        # S_{j-1}, which was read before P_{j-1} was handed over.
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


def _scores(block: _Block, item, j, tile):
  """S of a step into its slot."""
  r, config = block.refs, block.config
  slot, stage = _slot(block, item, j), lax.rem(item.base + j, config.stages)
  s = r["sp"][tile][0].at[:, pl.ds(slot * config.keys, config.keys)]
  pl.when(j == 0)(lambda: plgpu.barrier_wait(r["q_full"].at[tile]))
  if tile == 0:  # which is always present
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


def _slot(block: _Block, item, j):
  """Where S of a step is."""
  return lax.rem(item.base + j, block.config.slots)


def _outputs(block: _Block, item, j, tile):
  """O += P V of a step."""
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
    # The next S overwrites this P; products that write to different places
    # are not promised to run in order.
    plgpu.barrier_wait(r["o_done"].at[tile])


def _rescale(block: _Block, tile, factor):
  """O *= a number per row, some columns at a time to save registers."""
  width = block.config.rescale
  for start in range(0, block.widths.value, width):
    size = min(width, block.widths.value - start)
    part = block.refs["o"][tile].at[:, pl.ds(start, size)]
    o = plgpu.async_load_tmem(part, layout=_NATIVE)
    plgpu.wait_load_tmem()
    o *= lax.broadcast_in_dim(factor, o.shape, [0])
    plgpu.async_store_tmem(part, o)


def _softmax(block: _Block, tile, out_gmem):
  """The warpgroup of a tile; at the end of an item it stores the output."""
  r, config = block.refs, block.config

  def visit(item):
    m, l = _row_of(config, LEAST), _row_of(config, 0.0)
    for _, _, count, number, before in item.segments:

      def body(j, carry, count=count, before=before):
        own = count[item.stream, j]
        return _step(block, item, before - item.base + j, tile, own, *carry)

      m, l = lax.fori_loop(0, number, body, (m, l))
    plgpu.barrier_wait(r["o_done"].at[tile])
    _rescale(block, tile, jnp.where(l > 0.0, 1.0 / l, 0.0))
    plgpu.commit_tmem()
    _store(block, item, tile, out_gmem)

  block.for_items(lambda item: pl.when(item.present[tile])(lambda: visit(item)))
  plgpu.wait_smem_to_gmem(0)


def _row_of(config, value):
  """A number per query row."""
  row = jnp.full((config.rows,), value, jnp.float32)
  return plgpu.layout_cast(row, _ROW)


def _step(block: _Block, item, j, tile, count, m, l):
  """Online softmax of a block of keys; returns the new maximum and sum."""
  r, config = block.refs, block.config
  s_ref, p_ref = r["sp"][tile]
  slot, shape = _slot(block, item, j), (config.rows, config.keys)
  plgpu.barrier_wait(r["s_full"].at[tile * config.slots + slot])
  s = plgpu.async_load_tmem(
    s_ref.at[:, pl.ds(slot * config.keys, config.keys)], layout=_NATIVE
  )
  plgpu.wait_load_tmem()

  def mask(s):
    lane = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=_NATIVE)
    return jnp.where(lane < count, s, reference.MASKED)

  # Most blocks are full; comparing costs more than half of what remains.
  s = lax.cond(count < config.keys, mask, lambda s: s, s)
  grown = jnp.maximum(m, s.max(axis=1))
  m_new = jnp.where((grown - m) * block.scale > SLACK, grown, m)
  alpha = jnp.exp2((m - m_new) * block.scale)
  # One multiply-add per score: the maximum is scaled, not the scores.
  top = lax.broadcast_in_dim(m_new * block.scale, shape, [0])
  p = jnp.exp2(s * block.scale - top)
  l_new = alpha * l + p.sum(axis=1)

  @pl.when(j > 0)
  def correct():
    plgpu.barrier_wait(r["o_done"].at[tile])
    pl.when(jnp.min(alpha) < 1.0)(lambda: _rescale(block, tile, alpha))

  plgpu.async_store_tmem(p_ref, p.astype(p_ref.dtype))
  plgpu.commit_tmem()
  plgpu.barrier_arrive(r["p_full"].at[tile])
  return m_new, l_new


def _store(block: _Block, item, tile, out_gmem):
  """O through shared memory to the output; TMA clips rows past the end."""
  r, widths = block.refs, block.widths
  rows, smem = pl.ds(item.rows[tile], block.config.rows), r["out"].at[tile]
  for start in range(0, widths.value, widths.store):
    part = r["o"][tile].at[:, pl.ds(start, widths.store)]
    o = plgpu.async_load_tmem(part, layout=_OUT)
    plgpu.wait_load_tmem()
    # The part before, perhaps of another item, is on its way from this memory.
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    smem[...] = o.astype(smem.dtype)
    plgpu.commit_smem()
    columns = pl.ds(item.head * widths.value + start, widths.store)
    plgpu.copy_smem_to_gmem(smem, out_gmem.at[item.stream, rows, columns])


def _kernel(*refs, widths, config, scale, rows, grid, num_segments, **scratch):
  """Places the actors; arguments as `_call` lists them."""
  order, *queries = refs[:3]
  out_gmem = refs[-1]
  per_segment = 5 if widths.shared else 6
  inputs = [
    refs[3 + i * per_segment : 3 + (i + 1) * per_segment]
    for i in range(num_segments)
  ]
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
  def feed():
    if config.tiles > 1:
      plgpu.set_max_registers(plan.LOAD_REGISTERS, action="decrease")

    @plgpu.warp_map
    def per_warp(warp):
      pl.when(warp == _TMA_WARP)(
        lambda: _load(block, queries, [x[3:] for x in inputs])
      )
      pl.when(warp == _MMA_WARP)(lambda: _multiply(block))

  for tile in block.tiles:

    @pl.when(group == 1 + tile)
    def consume(tile=tile):
      if config.tiles > 1:
        plgpu.set_max_registers(plan.SOFTMAX_REGISTERS, action="increase")
      _softmax(block, tile, out_gmem)


def flash(
  queries: types.Queries,
  segments: Sequence[types.KeyValue],
  *,
  scale: float,
  config: plan.Config | None = None,
  interpret: Any = None,
) -> Float[Array, "B R H D"]:
  """The kernel that `forms.attend` runs; its gradient is Pallas Triton's.

  Where a gradient is asked for, Pallas Triton runs the forward pass, too: it
  saves the logarithm of the sum, for which this kernel has no registers left.

  Args:
    queries: Content and rotated positional queries.
    segments: Keys and values, heads as in the queries.
    scale: Logit multiplier, positive.
    config: Block sizes.
    interpret: `plgpu.InterpretGPUParams` to run on a CPU.

  Raises:
    NotImplementedError: If widths, dtypes or heads do not fit.
  """
  widths = _widths(queries, segments)
  batch, rows, heads, _ = queries.content.shape
  config = config or plan.config_of(widths, rows=rows, heads=batch * heads)
  reason = plan.refusal(widths, config)
  if reason:
    raise NotImplementedError(f"pallas_mosaic_gpu: {reason}")

  def run(queries, segments):
    return _call(queries, segments, scale, widths, config, interpret)

  flash = pallas_triton.with_gradient(
    run, scale=scale, interpret=interpret is not None
  )
  return flash(queries, tuple(segments))


def _tables(segments, config):
  """Block tables; a stream without any key gets one block of none of its own.

  Its output is zero. A warp that waits for a first block that never comes would
  hang the device.
  """
  tables = [
    blocks.table_of(s.valid, validity_block=s.validity_block, block=config.keys)
    for s in segments
  ]
  total = sum(t.num_blocks for t in tables)
  last = tables[-1]
  tables[-1] = last._replace(num_blocks=last.num_blocks + (total == 0))
  # The compiler must see that copies start at whole tiles.
  return [t._replace(start=t.start // plan.TILE_ROWS) for t in tables]


def _call(queries, segments, scale, widths, config, interpret):
  batch, rows, heads, _ = queries.content.shape
  tables = _tables(segments, config)
  arrays = [blocks.longest_first(tables)]
  arrays += [q.reshape(batch, rows, -1) for q in queries]
  for s, table in zip(segments, tables, strict=True):
    keys = (batch, s.rope.shape[1], -1)
    arrays += [*table, s.content.reshape(keys), s.rope]
    arrays += [] if s.value is None else [s.value.reshape(keys)]
  dtype = queries.content.dtype
  grid = (batch, heads, pl.cdiv(rows, config.item_rows))

  def body(*refs, **scratch):
    _kernel(
      *refs,
      widths=widths,
      config=config,
      scale=scale,
      rows=rows,
      grid=grid,
      num_segments=len(segments),
      **scratch,
    )

  body.__name__ = "latent_attention"
  out = plgpu.kernel(
    body,
    out_type=jax.ShapeDtypeStruct((batch, rows, heads * widths.value), dtype),
    grid=(min(config.cores, math.prod(grid)),),
    grid_names=("block",),
    num_threads=1 + config.tiles,
    thread_name="group",
    scratch_types=plan.scratch(widths, config, dtype),
    compiler_params=plgpu.CompilerParams(approx_math=True),
    interpret=interpret,
  )(*arrays)
  return out.reshape(batch, rows, heads, widths.value)
