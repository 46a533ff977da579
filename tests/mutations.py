"""Damaged files for the readers of foreign bytes: seeded, bounded, counted.

A `Reader` says how good files are made and how one is read. `run` damages them
and holds every outcome to one rule: the file is read, or it is refused with one
printable sentence that names it, in bounded time and memory.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import pathlib
import resource
import time
from typing import NamedTuple

import numpy as np

# Values that often stand where a program reads a length or an index.
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
_EDGES += (0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
_LONGEST = 600  # characters of a message that a person still reads


class Seed(NamedTuple):
  """A good file.

  Attributes:
    target: What is given to the reader: the file, or the folder it lies in.
    file: The file whose bytes are changed.
  """

  target: pathlib.Path
  file: pathlib.Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
  """A reader of foreign bytes.

  Attributes:
    seeds: Writes good files into a folder.
    read: Reads everything of a target.
    mutate: Changes the bytes of a file.
    errors: What a refusal raises, exactly; no subclass counts, since those of
      `ValueError` come from libraries.
    names_file: Whether a refusal names the damaged file.
  """

  seeds: Callable[[pathlib.Path, np.random.Generator], Sequence[Seed]]
  read: Callable[[pathlib.Path], object]
  mutate: Callable[[bytes, np.random.Generator], bytes] = lambda x, rng: (
    mutated(x, rng)
  )
  errors: tuple[type[Exception], ...] = (ValueError,)
  names_file: bool = True


class Tally(NamedTuple):
  """What became of damaged files.

  Attributes:
    read: Number that was read all the same.
    refused: Number that was refused.
    seconds: Longest time that one file took.
    bytes: Growth of the peak memory of the process.
  """

  read: int
  refused: int
  seconds: float
  bytes: int


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
  """Changes bytes in one to four of the ways in which files are damaged."""
  buffer = bytearray(data)
  for _ in range(rng.integers(1, 5)):
    kind = _KINDS[rng.integers(len(_KINDS))]
    buffer = kind(buffer, rng)
  return bytes(buffer)


def _place(data: bytearray, rng: np.random.Generator) -> int:
  """Draws an index; half of them lie in the first or the last 256 bytes."""
  size = len(data)
  if not size:
    return 0
  where, near = rng.integers(4), int(rng.integers(min(size, 256)))
  return (near, size - 1 - near)[where] if where < 2 else rng.integers(size)


def _flip(data: bytearray, rng: np.random.Generator) -> bytearray:
  if data:
    data[_place(data, rng)] ^= 1 << rng.integers(8)
  return data


def _noise(data: bytearray, rng: np.random.Generator) -> bytearray:
  start, length = _place(data, rng), int(rng.integers(1, 17))
  data[start : start + length] = rng.bytes(length)
  return data


def _edge(data: bytearray, rng: np.random.Generator) -> bytearray:
  """Writes a number at which counting goes wrong, in either byte order."""
  width = (1, 2, 4, 8)[rng.integers(4)]
  order = ("little", "big")[rng.integers(2)]
  value = _EDGES[rng.integers(len(_EDGES))] % (1 << 8 * width)
  start = _place(data, rng)
  data[start : start + width] = value.to_bytes(width, order)
  return data


def _cut(data: bytearray, rng: np.random.Generator) -> bytearray:
  return data[: _place(data, rng)]


def _drop(data: bytearray, rng: np.random.Generator) -> bytearray:
  start, length = _place(data, rng), int(rng.integers(1, 65))
  del data[start : start + length]
  return data


def _repeat(data: bytearray, rng: np.random.Generator) -> bytearray:
  start, length = _place(data, rng), int(rng.integers(1, 257))
  piece = data[start : start + length] * int(rng.integers(1, 5))
  at = _place(data, rng)
  return data[:at] + piece + data[at:]


_KINDS = (_flip, _flip, _noise, _edge, _edge, _cut, _drop, _repeat)


def run(
  reader: Reader,
  folder: pathlib.Path,
  *,
  count: int,
  seed: int,
  first: int = 0,
  seconds: float = 60.0,
  memory: int = 10**9,
) -> Tally:
  """Reads damaged files and asserts that each is read or refused well.

  Args:
    reader: What reads them.
    folder: An empty folder; the last damaged file stays there after a failure.
    count: Number of damaged files.
    seed: Seed of the damage; each file has a generator of its own, so that the
      one numbered N can be made again alone with `first=N` and `count=1`.
    first: Number of the first file.
    seconds: Longest time that one file may take.
    memory: Bytes by which the peak memory of this process may grow.

  Returns:
    How many were read and refused, and what that cost.
  """
  seeds = [
    (good, good.file.read_bytes())
    for good in reader.seeds(folder, np.random.default_rng(seed))
  ]
  for good, _ in seeds:
    reader.read(good.target)  # What is whole must be readable.
  before, slowest = _peak(), 0.0
  tally = [0, 0]
  for number in range(first, first + count):
    rng = np.random.default_rng([seed, number])
    good, data = seeds[rng.integers(len(seeds))]
    good.file.write_bytes(reader.mutate(data, rng))
    # A child that dies says by this file which damage it was.
    (folder / "number").write_text(str(number))
    started = time.monotonic()
    refused = _read(reader, good, f"{seed=}, {number=}: ")
    slowest = max(slowest, time.monotonic() - started)
    tally[refused] += 1
    assert slowest < seconds, f"{seed=}, {number=} took {slowest:.0f} s"
    grown = _peak() - before
    assert grown < memory, f"{seed=}, {number=}: {grown} bytes"
    good.file.write_bytes(data)
  return Tally(tally[0], tally[1], slowest, _peak() - before)


def _read(reader: Reader, good: Seed, where: str) -> bool:
  """Returns whether a damaged file was refused, and holds refusals to rules."""
  try:
    reader.read(good.target)
  except Exception as error:
    assert type(error) in reader.errors, f"{where}{error!r}"
    message = str(error)
    assert message.isprintable(), f"{where}{message!r}"
    assert len(message) <= _LONGEST, f"{where}{message}"
    if reader.names_file:
      assert good.file.name in message, f"{where}{message}"
    return True
  return False


def _peak() -> int:
  """Returns the largest memory that this process ever had, in bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
