"""Flash attention for Blackwell (sm_100a) in Pallas Mosaic GPU.

One thread block per multiprocessor walks through work items, each a tile of
query rows of one head that visits all keys of its stream. Three actors in two
warpgroups hand work on through barriers:

  TMA warp   loads queries once an item, blocks of keys into a ring of stages
  MMA warp   S_j = Q K_jᵀ (two products: content and shared positional part),
             O += P_j V_j; S has two slots, so S_{j+1} runs beside softmax j
  softmax    m' = max(m, S_j), P_j = 2^(S_j - m'), O *= 2^(m - m') if m grew

S, P and O live in tensor memory. Where the value is the content itself
(absorbed form) the very block of shared memory that served as K serves as V.
The positional key is shared by all heads and never copied to them.

Actors walk on by themselves: while the softmax group finishes an item, the
next one's queries and first keys arrive and its first scores are multiplied. A
slot's turn and a barrier's phase follow from the number of key blocks since the
start of the kernel, which every actor counts. Items of a head are neighbours,
and so are heads of a stream, so the blocks that run together read the same keys
from the L2 cache (absorbed: all of them). Streams with the most keys come first;
what is left at the end, when some multiprocessors have run dry, is short.

Which keys are visited is decided outside (`blocks.table_of`): a block has a
first key and a number of keys that are its own. TMA fills rows past the end
with zeros and does not write them, so no size needs padding; frames of several
must be a multiple of 8 tokens.
"""

from collections.abc import Sequence
import dataclasses
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
from videomla_jax.ops.latent_attention import pallas_triton
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import specs

TILE_ROWS = 8  # rows of a swizzled tile, where a TMA copy may start
TMEM_COLUMNS = 512
MAX_VALUE = 256  # columns of one product; Mosaic takes no others below 512
SMEM_BYTES = 232_448
# What Mosaic keeps for itself: barriers, reductions, addresses.
HIDDEN_SMEM_BYTES = 4096
DTYPES = ("bfloat16", "float16")
LOG2_E = math.log2(math.e)

_NATIVE = plgpu.Layout.TCGEN05_TMEM_NATIVE
_ROW = _NATIVE.reduce(1)
_OUT = plgpu.Layout.TCGEN05
_TMA_WARP, _MMA_WARP = 0, 1
_LOAD_GROUP, _SOFTMAX_GROUP = 0, 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How work is cut.

  Attributes:
    rows: Query rows of a tile; 128 lanes of tensor memory.
    keys: Keys per block, a multiple of 64.
    stages: Blocks of keys in shared memory.
    rescale: Columns of the output that are rescaled at a time; 64 spill.
    cores: Thread blocks, at most one per work item. Shared memory lets one
      reside on a multiprocessor, of which a B200 has 148. More would queue as
      in an ordinary grid, fewer leave the rest idle; the result is the same.
  """

  rows: int = 128
  keys: int = 128
  stages: int = 2
  rescale: int = 32
  cores: int = 148


@dataclasses.dataclass(frozen=True, kw_only=True)
class Widths:
  """Channels of a call, and whether the value is the content."""

  content: int
  rope: int
  value: int
  shared: bool

  def tmem_columns(self, config: Config) -> int:
    """Columns of 32 bits: two S, P in half the width, O."""
    return 2 * config.keys + config.keys // 2 + self.value

  def smem_bytes(self, config: Config, itemsize: int = 2) -> int:
    """Shared memory: queries, output, stages, 1 / l."""
    query = config.rows * (self.content + self.rope + self.value)
    stored = self.content + self.rope + (0 if self.shared else self.value)
    stage = config.stages * config.keys * stored
    return (query + stage) * itemsize + config.rows * 4 + HIDDEN_SMEM_BYTES


def refusal(widths: Widths, config: Config) -> str:
  """Why a call does not fit the device with these block sizes, or empty."""
  columns, smem = widths.tmem_columns(config), widths.smem_bytes(config)
  if widths.value > MAX_VALUE:
    return f"value width {widths.value} exceeds {MAX_VALUE}"
  if columns <= TMEM_COLUMNS and smem <= SMEM_BYTES:
    return ""
  return (
    f"widths {widths.content} + {widths.rope} and value {widths.value} need "
    f"{columns} of {TMEM_COLUMNS} columns of tensor memory and {smem} of "
    f"{SMEM_BYTES} bytes of shared memory"
  )


def config_of(widths: Widths) -> Config:
  """The largest block of keys that fits, then as many stages.

  128 keys let a product of 128 x 128 run per softmax tile; 64 halve both.
  More than three stages hide no more latency than two products take.

  Returns:
    Block sizes; the smallest, which `refusal` explains, where nothing fits.
  """
  config = Config()
  for keys in (128, 64):
    for stages in (3, 2):
      config = Config(keys=keys, stages=stages)
      if not refusal(widths, config):
        return config
  return config


def _widths(queries, segments) -> Widths:
  """Widths of a call; raises `NotImplementedError` if they cannot be taken."""
  forms.check("pallas_mosaic_gpu", queries, segments, dtypes=DTYPES)
  for s in segments:
    if s.valid.shape[1] > 1 and s.granule % TILE_ROWS:
      raise NotImplementedError(
        f"pallas_mosaic_gpu: frames of {s.granule} keys are no multiple of "
        f"{TILE_ROWS}"
      )
  first = segments[0]
  widths = Widths(
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


def _tiled(shape, dtype):
  """Shared memory in the layout that TMA writes and tensor cores read."""
  bits = jnp.dtype(dtype).itemsize * 8
  swizzle = plgpu.find_swizzle(shape[-1] * bits)
  return plgpu.SMEM(
    shape,
    dtype,
    transforms=(
      plgpu.TilingTransform((8, swizzle * 8 // bits)),  # type: ignore
      plgpu.SwizzleTransform(swizzle),  # type: ignore
    ),
  )


def _scratch(widths: Widths, config: Config, dtype) -> dict[str, Any]:
  """Memories and barriers of a block; the names are those of the kernel."""
  stages = (config.stages, config.keys)
  value = {} if widths.shared else {"v": (*stages, widths.value)}
  smem = {
    "q_content": (config.rows, widths.content),
    "q_rope": (config.rows, widths.rope),
    "k_content": (*stages, widths.content),
    "k_rope": (*stages, widths.rope),
    "out": (config.rows, widths.value),
    **value,
  }

  def ordered(count=1):
    return plgpu.Barrier(num_barriers=count, orders_tensor_core=True)

  return dict(
    {name: _tiled(shape, dtype) for name, shape in smem.items()},
    inverse=plgpu.SMEM((config.rows,), jnp.float32),
    s=plgpu.TMEM((config.rows, 2 * config.keys), jnp.float32),
    p=plgpu.TMEM((config.rows, config.keys), dtype, packed=True),
    o=plgpu.TMEM((config.rows, widths.value), jnp.float32),
    q_full=plgpu.Barrier(num_arrivals=2),
    q_free=ordered(),
    k_full=plgpu.Barrier(
      num_arrivals=2 if widths.shared else 3, num_barriers=config.stages
    ),
    k_free=ordered(config.stages),
    s_full=ordered(2),
    p_full=ordered(),
    o_done=ordered(),
  )


@dataclasses.dataclass(frozen=True)
class _Item:
  """A tile of query rows and the keys that it visits.

  Attributes:
    stream: Index of the stream.
    head: Index of the head.
    row: First row.
    follows: False for the first item of a thread block.
    base: Steps (blocks of keys) of all items before; slots and phases go on.
    segments: Of each segment: index, start and count refs, steps, and steps
      since the start of the kernel.
    steps: Steps of this item.
  """

  stream: Any
  head: Any
  row: Any
  follows: Any
  base: Any
  segments: list[tuple[int, Any, Any, Any, Any]]
  steps: Any


@dataclasses.dataclass(frozen=True)
class _Block:
  """What the actors of one thread block share.

  Attributes:
    widths: Channels.
    config: Block sizes.
    scale: Logit multiplier in base 2.
    grid: Number of streams, heads and tiles.
    order: Streams, the one with the most keys first.
    tables: Start (in tiles of rows), count and number of blocks of each
      segment.
    refs: Scratch by name.
  """

  widths: Widths
  config: Config
  scale: float
  grid: tuple[int, int, int]
  order: Any
  tables: list[tuple[Any, Any, Any]]
  refs: dict[str, Any]

  def _item(self, info, base):
    place, head, tile = info.index
    stream = self.order[place]
    step, segments = base, []
    for i, (start, count, number) in enumerate(self.tables):
      segments.append((i, start, count, number[stream], step))
      step = step + number[stream]
    return _Item(
      stream=stream,
      head=head,
      row=tile * self.config.rows,
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
    # The scores of the item before are done with the queries long before its
    # softmax is.
    pl.when(item.follows)(lambda: plgpu.barrier_wait(r["q_free"]))
    rows = pl.ds(item.row, block.config.rows)
    for gmem, smem in zip(queries, (r["q_content"], r["q_rope"]), strict=True):
      own = gmem.at[item.stream, rows, _columns(item, smem.shape[-1])]
      plgpu.copy_gmem_to_smem(own, smem, r["q_full"])
    for i, start, _, number, before in item.segments:

      def load(j, _, start=start, before=before, arrays=segments[i]):
        first = start[item.stream, j] * TILE_ROWS
        _load_keys(block, item, arrays, first, before + j)

      lax.fori_loop(0, number, load, None)

  steps = block.for_items(visit)

  # Every phase of a barrier must be waited for.
  def drain(step, _):
    plgpu.barrier_wait(r["k_free"].at[lax.rem(step, stages)])

  lax.fori_loop(lax.max(steps - stages, 0), steps, drain, None)
  plgpu.barrier_wait(r["q_free"])


def _columns(item, width):
  return pl.ds(item.head * width, width)


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
    content.at[item.stream, own, _columns(item, block.widths.content)],
    r["k_content"].at[slot],
    full,
  )
  plgpu.copy_gmem_to_smem(rope.at[item.stream, own], r["k_rope"].at[slot], full)
  for v in value:
    plgpu.copy_gmem_to_smem(
      v.at[item.stream, own, _columns(item, block.widths.value)],
      r["v"].at[slot],
      full,
    )


def _multiply(block: _Block):
  """The MMA warp."""
  r, stages = block.refs, block.config.stages

  def visit(item):
    def step(j, _):
      # S_{j+1} before O_j: the softmax of j runs meanwhile. Its slot held
      # S_{j-1}, which was read before P_{j-1} was handed over.
      pl.when(j + 1 < item.steps)(lambda: _scores(block, item, j + 1))

      stage = lax.rem(item.base + j, stages)
      value = r["k_content"] if block.widths.shared else r["v"]
      # The first P comes after the output of the item before was read.
      plgpu.barrier_wait(r["p_full"])
      plgpu.tcgen05_mma(
        r["o"],
        r["p"],
        value.at[stage],
        r["k_free"].at[stage],
        accumulate=j > 0,
      )
      plgpu.tcgen05_commit_arrive(r["o_done"])

    plgpu.barrier_wait(r["q_full"])
    _scores(block, item, jnp.int32(0))
    lax.fori_loop(0, item.steps, step, None)

  block.for_items(visit)


def _scores(block: _Block, item, j):
  """S of a step into its slot."""
  r, keys = block.refs, block.config.keys
  stage = lax.rem(item.base + j, block.config.stages)
  slot = lax.rem(item.base + j, 2)
  s = r["s"].at[:, pl.ds(slot * keys, keys)]
  plgpu.barrier_wait(r["k_full"].at[stage])
  plgpu.tcgen05_mma(
    s, r["q_content"], r["k_content"].at[stage].T, accumulate=False
  )
  plgpu.tcgen05_mma(
    s,
    r["q_rope"],
    r["k_rope"].at[stage].T,
    r["s_full"].at[slot],
    accumulate=True,
  )

  @pl.when(j + 1 == item.steps)
  def queries_are_done():
    plgpu.tcgen05_commit_arrive(r["q_free"])


def _rescale(block: _Block, alpha):
  """O *= α, some columns at a time to save registers."""
  width = block.config.rescale
  for start in range(0, block.widths.value, width):
    size = min(width, block.widths.value - start)
    part = block.refs["o"].at[:, pl.ds(start, size)]
    o = plgpu.async_load_tmem(part, layout=_NATIVE)
    plgpu.wait_load_tmem()
    o *= lax.broadcast_in_dim(alpha, o.shape, [0])
    plgpu.async_store_tmem(part, o)


def _softmax(block: _Block, out_gmem):
  """The softmax warpgroup; at the end of an item it stores the output."""
  r, config = block.refs, block.config
  shape = (config.rows, config.keys)

  def step(item, j, count, m, l):
    slot = lax.rem(item.base + j, 2)
    plgpu.barrier_wait(r["s_full"].at[slot])
    s = plgpu.async_load_tmem(
      r["s"].at[:, pl.ds(slot * config.keys, config.keys)], layout=_NATIVE
    )
    plgpu.wait_load_tmem()
    lane = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=_NATIVE)
    s = jnp.where(lane < count, s * block.scale, reference.MASKED)
    m_new = jnp.maximum(m, s.max(axis=1))
    alpha = jnp.exp2(m - m_new)
    p = jnp.exp2(s - lax.broadcast_in_dim(m_new, shape, [0]))
    l_new = alpha * l + p.sum(axis=1)

    @pl.when(j > 0)
    def correct():
      plgpu.barrier_wait(r["o_done"])
      pl.when(jnp.min(alpha) < 1.0)(lambda: _rescale(block, alpha))

    plgpu.async_store_tmem(r["p"], p.astype(r["p"].dtype))
    plgpu.commit_tmem()
    plgpu.barrier_arrive(r["p_full"])
    return m_new, l_new

  def visit(item):
    m, l = _row_of(config, reference.MASKED), _row_of(config, 0.0)
    for _, _, count, number, before in item.segments:

      def body(j, carry, count=count, before=before):
        own = count[item.stream, j]
        return step(item, before - item.base + j, own, *carry)

      m, l = lax.fori_loop(0, number, body, (m, l))
    # The output of the item before may be on its way from the same memory.
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    r["inverse"][...] = 1.0 / l
    plgpu.barrier_wait(r["o_done"])
    _store(block, item, out_gmem)

  block.for_items(visit)
  plgpu.wait_smem_to_gmem(0)


def _row_of(config, value):
  """A number per query row."""
  row = jnp.full((config.rows,), value, jnp.float32)
  return plgpu.layout_cast(row, _ROW)


def _store(block: _Block, item, out_gmem):
  """O / l through shared memory to the output; TMA clips rows past the end."""
  r = block.refs
  # Through shared memory, since the layouts of l and of a store differ.
  plgpu.commit_smem()
  inverse = plgpu.load(r["inverse"], layout=_OUT.reduce(1))
  o = plgpu.async_load_tmem(r["o"], layout=_OUT)
  plgpu.wait_load_tmem()
  o *= lax.broadcast_in_dim(inverse, o.shape, [0])
  r["out"][...] = o.astype(r["out"].dtype)
  plgpu.commit_smem()
  rows = pl.ds(item.row, block.config.rows)
  own = out_gmem.at[item.stream, rows, _columns(item, block.widths.value)]
  plgpu.copy_smem_to_gmem(r["out"], own)


def _kernel(*refs, widths, config, scale, grid, num_segments, **scratch):
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
    grid=grid,
    order=order,
    tables=[x[:3] for x in inputs],
    refs=scratch,
  )
  group = lax.axis_index("group")

  @pl.when(group == _LOAD_GROUP)
  def feed():
    @plgpu.warp_map
    def per_warp(warp):
      pl.when(warp == _TMA_WARP)(
        lambda: _load(block, queries, [x[3:] for x in inputs])
      )
      pl.when(warp == _MMA_WARP)(lambda: _multiply(block))

  @pl.when(group == _SOFTMAX_GROUP)
  def consume():
    _softmax(block, out_gmem)


def flash(
  queries: specs.Queries,
  segments: Sequence[forms.KeyValue],
  *,
  scale: float,
  config: Config | None = None,
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
  config = config or config_of(widths)
  reason = refusal(widths, config)
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

  Its output is not defined, but a warp that waits for a first block that never
  comes would hang the device.
  """
  tables = [
    blocks.table_of(s.valid, granule=s.granule, block=config.keys)
    for s in segments
  ]
  total = sum(t.num_blocks for t in tables)
  last = tables[-1]
  tables[-1] = last._replace(num_blocks=last.num_blocks + (total == 0))
  # The compiler must see that copies start at whole tiles.
  return [t._replace(start=t.start // TILE_ROWS) for t in tables]


def _call(queries, segments, scale, widths, config, interpret):
  batch, rows, heads, _ = queries.content.shape
  tables = _tables(segments, config)
  order = jnp.argsort(sum(t.num_blocks for t in tables), descending=True)
  arrays = [order.astype(jnp.int32)]
  arrays += [q.reshape(batch, rows, -1) for q in queries]
  for s, table in zip(segments, tables, strict=True):
    keys = (batch, s.rope.shape[1], -1)
    arrays += [*table, s.content.reshape(keys), s.rope]
    arrays += [] if s.value is None else [s.value.reshape(keys)]
  dtype = queries.content.dtype
  grid = (batch, heads, pl.cdiv(rows, config.rows))

  def body(*refs, **scratch):
    _kernel(
      *refs,
      widths=widths,
      config=config,
      scale=scale,
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
    num_threads=2,
    thread_name="group",
    scratch_types=_scratch(widths, config, dtype),
    compiler_params=plgpu.CompilerParams(approx_math=True),
    interpret=interpret,
  )(*arrays)
  return out.reshape(batch, rows, heads, widths.value)
