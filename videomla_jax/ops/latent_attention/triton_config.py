"""How the kernels that Triton compiles cut their work.

Both `pallas_triton` and `triton` take tiles of query rows through blocks of
keys. Triton's arrays have powers of two as sizes, so widths are taken in parts:
96 = 64 + 32, 192 = 128 + 64.
"""

import dataclasses

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
