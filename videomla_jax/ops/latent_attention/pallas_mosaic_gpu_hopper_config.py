"""How the Hopper kernel cuts its work, and the memory that this takes.

Hopper has no tensor memory: a thread of a consumer warpgroup holds its part of
O, of the scores S of one step and of the probabilities P of the step before,

  O  value / 2      S  keys / 2      P  keys / 4     registers

of at most 232, beside maxima, sums and addresses. Shared memory has the queries
and the output of all tiles, and rings of keys and of values. Where the content
is the value, there is one ring.
"""

import dataclasses
from typing import Any

from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config as plan

MAX_VALUE = 256  # columns of one product
# Registers of a thread of each kind. Three warpgroups share 65,536, which is
# 504 for three threads, one of each, since units are of eight.
LOAD_REGISTERS, CONSUMER_REGISTERS = 40, 232
# Registers of O, S and P above which the compiler spills.
PRODUCT_REGISTERS = 168


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(plan.Config):
  """Sizes of the work items and of the memory that they use.

  Attributes:
    tiles: Query tiles of a work item, 1 or 2; each has a consumer warpgroup.
    rows: Query rows of a tile, as many as one product of a warpgroup has.
    keys: Keys per block, a multiple of 64.
    stages: Blocks of keys that fit into shared memory at once.
    cores: Thread blocks, at most one per work item. Shared memory lets one
      reside on a multiprocessor, of which an H100 has 132.
  """

  tiles: int = 2
  rows: int = 64
  keys: int = 128
  stages: int = 2
  cores: int = 132


def _product_registers(widths: plan.Widths, keys: int) -> int:
  """Counts the registers of a thread for O, S and P."""
  return widths.value // 2 + keys // 2 + keys // 4


def _smem_bytes(
  widths: plan.Widths, config: plan.Config, itemsize: int = 2
) -> int:
  """Counts shared memory: queries, output, stages of keys and values."""
  key = widths.content + widths.rope
  query = config.item_rows * (key + widths.value)
  stored = key + (0 if widths.shared else widths.value)
  stage = config.stages * config.keys * stored
  return (query + stage) * itemsize + plan.HIDDEN_SMEM_BYTES


def refusal(widths: plan.Widths, config: plan.Config) -> str:
  """Says why a call does not fit the device; empty if it fits.

  Args:
    widths: Channels of the call.
    config: Sizes of the work items.
  """
  if widths.value > MAX_VALUE:
    return f"value width {widths.value} exceeds {MAX_VALUE}"
  registers = _product_registers(widths, config.keys)
  smem = _smem_bytes(widths, config)
  if registers <= PRODUCT_REGISTERS and smem <= plan.SMEM_BYTES:
    return ""
  return (
    f"widths {widths.content} + {widths.rope} and value {widths.value} need "
    f"{registers} of {PRODUCT_REGISTERS} registers of a thread for products "
    f"and {smem} of {plan.SMEM_BYTES} bytes of shared memory"
  )


def config_of(widths: plan.Widths, *, rows: int, heads: int) -> Config:
  """Takes most keys per block that registers hold, then most stages.

  A block of 128 keys halves the work per key of rescaling the output and of
  reducing over a row. With a ring for both keys and values a step holds two
  stages, and a third lets the next keys arrive meanwhile. Few rows have one
  tile. All this is computed; nothing was timed.

  Args:
    widths: Channels of the call.
    rows: Query rows of a head.
    heads: Heads of all rows of the batch.

  Returns:
    Sizes that fit; where none do the smallest, which `refusal` explains.
  """
  del heads  # of which every tile has one
  tiles = 1 if rows <= Config().rows else 2
  least = 3 if widths.shared else 2
  config = Config()
  for keys in (128, 64):
    for stages in (4, 3, 2):
      config = Config(tiles=tiles, keys=keys, stages=stages)
      enough = stages >= least or keys == 64
      if enough and not refusal(widths, config):
        return config
  return config


def rings(widths: plan.Widths) -> dict[str, tuple[str, ...]]:
  """Names the memories of each ring, in the order of a segment's arrays.

  Args:
    widths: Channels of the call.
  """
  keys = ("k_content", "k_rope") if widths.rope else ("k_content",)
  return {"k": keys} if widths.shared else {"k": keys, "v": ("v",)}


def scratch(
  widths: plan.Widths, config: plan.Config, dtype: DTypeLike
) -> dict[str, Any]:
  """Lists the memories and barriers of a thread block by name.

  Args:
    widths: Channels of the call.
    config: Sizes of the work items.
    dtype: Type of queries, keys and values.
  """
  query, stage = (config.tiles, config.rows), (config.stages, config.keys)
  smem = {
    "q_content": (*query, widths.content),
    "q_rope": (*query, widths.rope),
    "k_content": (*stage, widths.content),
    "k_rope": (*stage, widths.rope),
    "v": (*stage, 0 if widths.shared else widths.value),
    "out": (*query, widths.value),
  }
  made: dict[str, Any] = {
    name: plan.tiled(shape, dtype) for name, shape in smem.items() if shape[-1]
  }
  for ring, names in rings(widths).items():
    made[f"{ring}_full"] = plgpu.Barrier(
      num_arrivals=len(names), num_barriers=config.stages
    )
    made[f"{ring}_free"] = plgpu.Barrier(
      num_arrivals=config.tiles, num_barriers=config.stages
    )
  made["q_full"] = plgpu.Barrier(
    num_arrivals=2 if widths.rope else 1, num_barriers=config.tiles
  )
  made["q_free"] = plgpu.Barrier(num_arrivals=config.tiles)
  made["turn"] = plgpu.Barrier(num_barriers=config.tiles)
  return made
