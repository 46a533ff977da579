"""How the gradient kernels for Hopper cut their work, and the memory they take.

A thread block has tiles of 64 rows that stay, and blocks of rows that come by.
For dQ the rows that stay are queries and those that come by are keys; for dK
and dV it is the other way round. A thread of a consumer warpgroup holds

  gradients   (key + value) / 2 for dK and dV, key / 2 for dQ
  S and dP    block / 2 each
  p and ds    block / 4 each, of which dQ needs only ds

registers of at most 232, where "key" is the width of a key with its position.
"""

import dataclasses
from typing import Any

from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from jax.typing import DTypeLike

from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config as plan

LOAD_REGISTERS, CONSUMER_REGISTERS = 24, 240
# Columns of all gradients of a tile above which the compiler spills.
MAX_COLUMNS = 256
# Columns of the gradient of the output that dQ's consumers hold in registers.
# Of 192 ptxas runs one product after the other.
MAX_HELD = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes of the work of a thread block.

  Attributes:
    of_keys: Whether the rows that stay are keys.
    tiles: Tiles of a thread block; each has a consumer warpgroup.
    rows: Rows of a tile, as many as one product of a warpgroup has.
    block: Rows of a block that comes by.
    stages: Blocks that fit into shared memory at once.
  """

  of_keys: bool
  tiles: int = 2
  rows: int = 64
  block: int = 64
  stages: int = 4

  @property
  def tile_rows(self) -> int:
    """Rows that stay in a thread block."""
    return self.tiles * self.rows


def _columns(widths: plan.Widths) -> int:
  """Counts the columns of a key with its position, and of a value."""
  return widths.content + widths.rope + widths.value


def smem_bytes(widths: plan.Widths, config: Config) -> int:
  """Counts shared memory: tiles, stages of blocks, and sums over heads.

  Args:
    widths: Channels of the call.
    config: Sizes of the work.
  """
  row = 2 * _columns(widths)
  # A row of queries has two numbers, a key has a flag and a sum over heads.
  beside = (4 * (1 + widths.rope), 4 * 2) if config.of_keys else (4 * 2, 0)
  tile, block = row + beside[0], row + beside[1]
  staged = config.stages * config.block
  return config.tile_rows * tile + staged * block + plan.HIDDEN_SMEM_BYTES


def refusal(widths: plan.Widths) -> str:
  """Says why the gradient of a call does not fit; empty if it fits.

  Args:
    widths: Channels of the call.
  """
  if widths.shared:
    return "the kernels of the gradient are for the expanded form"
  if _columns(widths) > MAX_COLUMNS:
    return (
      f"keys and values of {_columns(widths)} channels exceed {MAX_COLUMNS}, "
      "for whose gradients there are registers"
    )
  return ""


def config_of(widths: plan.Widths, *, of_keys: bool) -> Config:
  """Takes the most stages that fit, up to four.

  Args:
    widths: Channels of the call, which `refusal` accepts.
    of_keys: Whether the rows that stay are keys.
  """
  configs = [Config(of_keys=of_keys, stages=n) for n in (4, 3, 2)]
  fits = (c for c in configs if smem_bytes(widths, c) <= plan.SMEM_BYTES)
  return next(fits)


def memories(widths: plan.Widths) -> dict[str, int]:
  """Names what a product reads, and its channels.

  Args:
    widths: Channels of the call.
  """
  named = dict(content=widths.content, rope=widths.rope, value=widths.value)
  return {name: width for name, width in named.items() if width}


def scratch(
  widths: plan.Widths, config: Config, dtype: DTypeLike
) -> dict[str, Any]:
  """Lists the memories and barriers of a thread block by name.

  Args:
    widths: Channels of the call.
    config: Sizes of the work.
    dtype: Type of queries, keys and values.
  """
  made: dict[str, Any] = {}
  for name, width in memories(widths).items():
    tile = (config.tiles, config.rows, width)
    made[f"tile_{name}"] = plan.tiled(tile, dtype)
    block = (config.stages, config.block, width)
    made[f"block_{name}"] = plan.tiled(block, dtype)
  line = lambda *shape: plgpu.SMEM(shape, jnp.float32)
  if config.of_keys:
    made["tile_seen"] = line(config.tiles, config.rows)
    made["block_lines"] = line(config.stages, 2, config.block)
    if widths.rope:
      out = (config.tiles, config.rows, widths.rope)
      made["out_rope"] = plan.tiled(out, jnp.float32)
  else:
    made["tile_lines"] = line(config.tiles, 2, config.rows)
  copies = lambda side: sum(name.startswith(side) for name in made)
  made["tile_full"] = plgpu.Barrier(
    num_arrivals=copies("tile_"), num_barriers=config.tiles
  )
  made["block_full"] = plgpu.Barrier(
    num_arrivals=copies("block_"), num_barriers=config.stages
  )
  made["block_free"] = plgpu.Barrier(
    num_arrivals=config.tiles, num_barriers=config.stages
  )
  return made
