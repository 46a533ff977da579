"""How the Blackwell kernel cuts its work, and the memory that this takes.

What a configuration is, and the widths of a call, are those of the Hopper
kernel as well, whose sizes follow in `pallas_mosaic_gpu_hopper_config`.

Tensor memory has 512 columns of 32 bits for each of 128 query rows. A single
tile of rows takes two slots of S, so that a product runs beside a softmax, and
P and O. Two tiles run beside each other anyway: each has one S, which its P
overwrites.

  one tile    2 S + P + O   two tiles   2 (S + O)
"""

import dataclasses
from typing import Any

from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from jax.typing import DTypeLike

TILE_ROWS = 8  # rows of a swizzled tile, where a TMA copy may start
TMEM_COLUMNS = 512
MAX_VALUE = 256  # columns of one product; Mosaic takes no others below 512
SMEM_BYTES = 232_448  # on Hopper, too
# Mosaic keeps bytes for barriers, reductions and addresses; 2,048 were seen.
HIDDEN_SMEM_BYTES = 3072
# These are the registers of a thread of each kind. Three warpgroups share
# 65,536, which is 512 for three threads, one of each. The load group needs 19
# and softmax 200. No spills were seen with 40 and 232, 72 and 216, 88 and 208;
# 56 and 224 spilled 32 bytes.
LOAD_REGISTERS, SOFTMAX_REGISTERS = 72, 216


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes of the work items and of the memory that they use.

  Attributes:
    tiles: Query tiles of a work item, 1 or 2; each has a softmax warpgroup.
    rows: Query rows of a tile, as many as tensor memory has lanes.
    keys: Keys per block, a multiple of 64.
    stages: Blocks of keys that fit into shared memory at once.
    rescale: Columns of the output that are rescaled at a time; 64 spill.
    cores: Thread blocks, at most one per work item. Shared memory lets one
      reside on a multiprocessor, of which a B200 has 148. More would queue as
      in an ordinary grid, fewer leave the rest idle; the result is the same.
  """

  tiles: int = 1
  rows: int = 128
  keys: int = 128
  stages: int = 2
  rescale: int = 32
  cores: int = 148

  @property
  def slots(self) -> int:
    """How many S of a tile exist at once."""
    return 2 if self.tiles == 1 else 1

  @property
  def item_rows(self) -> int:
    """Query rows of a work item."""
    return self.tiles * self.rows

  def waves(self, rows: int, heads: int) -> int:
    """Counts the work items of the busiest thread block.

    Args:
      rows: Query rows of a head.
      heads: Heads of all rows of the batch.
    """
    items = heads * -(-rows // self.item_rows)
    return -(-items // self.cores)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Widths:
  """Channels of the parts of keys and values that a call has.

  Attributes:
    content: Channels of the content part.
    rope: Channels of the positional part.
    value: Channels of the values.
    shared: Whether the content is the value.
  """

  content: int
  rope: int
  value: int
  shared: bool

  @property
  def store(self) -> int:
    """Columns of the output that are stored at a time."""
    return max(n for n in (64, 32, 16) if self.value % n == 0)

  def tmem_columns(self, config: Config) -> int:
    """Counts columns of 32 bits: S, O, and P where S has two slots."""
    beside = config.keys // 2 if config.slots > 1 else 0
    return config.tiles * (config.slots * config.keys + beside + self.value)

  def smem_bytes(self, config: Config, itemsize: int = 2) -> int:
    """Counts shared memory: queries, stored columns of the output, stages."""
    query = config.item_rows * (self.content + self.rope + self.store)
    stored = self.content + self.rope + (0 if self.shared else self.value)
    stage = config.stages * config.keys * stored
    return (query + stage) * itemsize + HIDDEN_SMEM_BYTES


def refusal(widths: Widths, config: Config) -> str:
  """Says why a call does not fit the device; empty if it fits.

  Args:
    widths: Channels of the call.
    config: Sizes of the work items.
  """
  if not widths.rope:
    return "the kernel for Blackwell needs keys with a positional part"
  if widths.value > MAX_VALUE:
    return f"value width {widths.value} exceeds {MAX_VALUE}"
  columns, smem = widths.tmem_columns(config), widths.smem_bytes(config)
  if columns <= TMEM_COLUMNS and smem <= SMEM_BYTES:
    return ""
  return (
    f"widths {widths.content} + {widths.rope} and value {widths.value} need "
    f"{columns} of {TMEM_COLUMNS} columns of tensor memory and {smem} of "
    f"{SMEM_BYTES} bytes of shared memory"
  )


def config_of(widths: Widths, *, rows: int, heads: int) -> Config:
  """Takes two tiles where they fit and pay, then most keys, then most stages.

  Two tiles share every block of keys, and one's products run beside the other's
  exponentials. An item of two takes longer than an item of one, though less
  than two of them, so they pay only if the busiest multiprocessor takes fewer
  items. With 64 keys two tiles do not pay: the first product reads 128 rows of
  queries for 64 of keys, and shared memory delivers 128 bytes a clock: 672
  clocks at d_c = 192 where the product takes 448. All this is computed from
  data sheets; nothing was timed.

  128 keys let a product of 128 x 128 run per softmax tile; 64 halve both.
  More than three stages hide no more latency than two products take.

  Args:
    widths: Channels of the call.
    rows: Query rows of a head.
    heads: Heads of all rows of the batch.

  Returns:
    Sizes that fit; where none do the smallest, which `refusal` explains.
  """
  config = Config()
  for tiles, keys in ((2, 128), (1, 128), (1, 64)):
    for stages in (3, 2):
      config = Config(tiles=tiles, keys=keys, stages=stages)
      pays = tiles == 1 or (
        config.waves(rows, heads) < Config().waves(rows, heads)
      )
      if pays and not refusal(widths, config):
        return config
  return config


def tiled(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
  """Asks for memory in the layout that TMA writes and tensor cores read.

  Args:
    shape: Shape of the memory.
    dtype: Type of its numbers.
  """
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


def rings(widths: Widths) -> dict[str, tuple[str, ...]]:
  """Names the memories of each ring, in the order of a segment's arrays.

  Args:
    widths: Channels of the call.
  """
  value = () if widths.shared else ("v",)
  return {"k": ("k_content", "k_rope", *value)}


def scratch(widths: Widths, config: Config, dtype: DTypeLike) -> dict[str, Any]:
  """Lists the memories and barriers of a thread block by name.

  Args:
    widths: Channels of the call.
    config: Sizes of the work items.
    dtype: Type of queries, keys and values.
  """
  tiles = range(config.tiles)
  query, stage = (len(tiles), config.rows), (config.stages, config.keys)
  value = {} if widths.shared else {"v": (*stage, widths.value)}
  smem = {
    "q_content": (*query, widths.content),
    "q_rope": (*query, widths.rope),
    "k_content": (*stage, widths.content),
    "k_rope": (*stage, widths.rope),
    "out": (*query, widths.store),
    **value,
  }
  s = plgpu.TMEM((config.rows, config.slots * config.keys), jnp.float32)
  p = plgpu.TMEM((config.rows, config.keys), dtype, packed=True)
  o = plgpu.TMEM((config.rows, widths.value), jnp.float32)

  def ordered(count: int = 1) -> plgpu.Barrier:
    return plgpu.Barrier(num_barriers=count, orders_tensor_core=True)

  return dict(
    {name: tiled(shape, dtype) for name, shape in smem.items()},
    sp=[[s, p] if config.slots > 1 else plgpu.RefUnion(s, p) for _ in tiles],
    o=[o for _ in tiles],
    q_full=plgpu.Barrier(num_arrivals=2, num_barriers=len(tiles)),
    q_free=ordered(),
    k_full=plgpu.Barrier(
      num_arrivals=len(rings(widths)["k"]), num_barriers=config.stages
    ),
    k_free=ordered(config.stages),
    s_full=ordered(len(tiles) * config.slots),
    p_full=ordered(len(tiles)),
    o_done=ordered(len(tiles)),
  )
