"""How the kernels that Triton compiles cut their work.

Both `pallas_triton` and `triton` take tiles of query rows through blocks of
keys. Triton's arrays have powers of two as sizes, so widths are taken in parts:
96 = 64 + 32, 192 = 128 + 64.

`TABLE` says which tiles `pallas_triton` takes. `benchmark:suite=gpu` with
`--config.rows=pallas_triton_tiles` times the candidates on the GPU that is
there; a test compares every row with the records.
"""

from collections.abc import Iterator
import dataclasses
import itertools
from typing import Literal

MIN_PART = 16  # the shortest contraction of a Triton product


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes of the tiles and what the compiler may use for them.

  Attributes:
    rows: Query rows of a program, a power of two.
    keys: Keys of a block, a power of two.
    num_warps: Warps of a program.
    num_stages: Blocks of keys that are loaded ahead.
  """

  rows: int = 128
  keys: int = 64
  num_warps: int = 8
  num_stages: int = 2

  def __str__(self) -> str:
    """Names the sizes as records do."""
    return (
      f"{self.rows} rows, {self.keys} keys, {self.num_warps} warps, "
      f"{self.num_stages} stages"
    )


Direction = Literal["forward", "gradient"]
COMPUTED = "computed"  # from what the compiler says of registers and spills


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """Tiles of some calls of `pallas_triton`.

  Attributes:
    direction: "forward", or "gradient" for both backward kernels.
    width: Most channels that the content part and the values may have.
    config: What is taken.
    source: Name of a record (`docs/benchmarks/NAME.jsonl`), or `COMPUTED`.
    major: Major number of the compute capability; None for all.
  """

  direction: Direction
  width: int
  config: Config
  source: str = COMPUTED
  major: int | None = None


_WIDEST = 2**16
# The first row that fits is taken; rows of records come before computed ones.
TABLE = (
  # 128 rows and 64 keys on 8 warps take 137 registers (expanded) and 145
  # (absorbed, d_c = 192) without spills on sm_100a; 4 warps spill.
  Row(direction="forward", width=192, config=Config()),
  # The accumulator of 256 channels is twice that of 128: half the rows.
  Row(direction="forward", width=256, config=Config(rows=64)),
  # 512 float32 columns of output leave room for few rows and keys.
  Row(
    direction="forward",
    width=_WIDEST,
    config=Config(rows=32, keys=32, num_stages=1),
  ),
  # A tile of dK and dV holds content + rope + value float32 columns per key,
  # and both kernels recompute the scores: half the rows of the forward pass.
  Row(direction="gradient", width=128, config=Config(rows=64, num_stages=1)),
  Row(
    direction="gradient",
    width=192,
    config=Config(rows=64, keys=32, num_stages=1),
  ),
  Row(
    direction="gradient",
    width=_WIDEST,
    config=Config(rows=32, keys=32, num_warps=4, num_stages=1),
  ),
)


def row_of(direction: Direction, width: int, capability: float) -> Row:
  """Finds the row of a call.

  Args:
    direction: Forward or backward kernels.
    width: Channels of the content part or of the values, the larger number.
    capability: Compute capability of the device; 0 without CUDA.
  """
  return next(
    row
    for row in TABLE
    if row.direction == direction
    and width <= row.width
    and row.major in (None, int(capability))
  )


def candidates(direction: Direction, width: int) -> Iterator[Config]:
  """Yields the tiles that a sweep tries.

  Left out is what must spill: an accumulator, scores and probabilities of more
  than 128 float32 numbers for each thread. A thread has 255 registers.

  Args:
    direction: Forward or backward kernels.
    width: Channels of the content part or of the values, the larger number.
  """
  backward = direction == "gradient"
  for rows, keys, warps, stages in itertools.product(
    (32, 64) if backward else (64, 128),
    (32, 64, 128),
    (4, 8),
    (1, 2) if backward else (2, 3),
  ):
    # dK and dV are two accumulators, for each key.
    numbers = (2 * keys if backward else rows) * width + rows * keys
    if numbers <= 128 * 32 * warps:
      yield Config(rows=rows, keys=keys, num_warps=warps, num_stages=stages)


def parts(
  width: int, *, name: str = "pallas_triton"
) -> tuple[tuple[int, int], ...]:
  """Cuts a width into the powers of two that add up to it.

  Args:
    width: Channels.
    name: Name of the kernel, for the error.

  Returns:
    Offset and size of every part, the widest part first.

  Raises:
    NotImplementedError: If a part would be shorter than 16.
  """
  # The bits of the width, from the highest on, are its parts.
  found, offset = [], 0
  for bit in reversed(range(width.bit_length())):
    if width & (1 << bit):
      found.append((offset, 1 << bit))
      offset += 1 << bit
  if not found or found[-1][1] < MIN_PART:
    raise NotImplementedError(
      f"{name}: width {width} is no sum of powers of two from 16 on"
    )
  return tuple(found)
