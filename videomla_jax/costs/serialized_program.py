"""Takes the GPU binaries out of a program that XLA serialised.

Such a program is a Riegeli file of Snappy-compressed records, with another such
file inside that holds the binaries (ELF "cubins"). Only as much of both formats
is read as these files use.
"""

from collections.abc import Iterator
import struct

_ELF = b"\x7fELF"
_CUDA_MACHINE = 190  # programs hold code of the host as well
# The first block header of a Riegeli file; one follows every 64 KiB.
_RIEGELI = bytes.fromhex("83af70d10d884a3f")
_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 1 << 16, 24, 40


def unsnap(data: bytes, start: int = 0) -> tuple[bytes, int]:
  """Decodes one raw Snappy stream.

  Args:
    data: Bytes with a stream in them.
    start: Where the stream starts.

  Returns:
    The decoded bytes, and where the stream ends.

  Raises:
    ValueError: If there is no stream.
  """
  size, position = _varint(data, start)
  out = bytearray()
  while len(out) < size:
    if position >= len(data):
      raise ValueError("the stream ends early")
    tag = data[position]
    kind, length = tag & 3, (tag >> 2) + 1
    position += 1
    if kind == 0:
      # Lengths above 60 do not fit into the tag: one to four bytes behind it
      # hold them.
      if length > 60:
        extra = length - 60
        length = int.from_bytes(data[position : position + extra], "little") + 1
        position += extra
      out += data[position : position + length]
      position += length
      continue
    if kind == 1:
      length = ((tag >> 2) & 7) + 4
      back = ((tag >> 5) << 8) | data[position]
      position += 1
    else:
      width = 2 if kind == 2 else 4
      back = int.from_bytes(data[position : position + width], "little")
      position += width
    if not 0 < back <= len(out):
      raise ValueError("a copy from before the start")
    for _ in range(length):  # byte by byte: a copy may overlap itself
      out.append(out[-back])
  if len(out) != size:
    raise ValueError("longer than announced")
  return bytes(out), position


def _varint(data: bytes, start: int) -> tuple[int, int]:
  """Decodes a number of at most five bytes; returns it and where it ends."""
  value = 0
  for i in range(5):
    if start + i >= len(data):
      break
    byte = data[start + i]
    value |= (byte & 127) << (7 * i)
    if byte < 128:
      return value, start + i + 1
  raise ValueError("no length")


def records(data: bytes) -> Iterator[bytes]:
  """Yields the record values of every chunk of the Riegeli files in `data`."""
  start = data.find(_RIEGELI)
  while start >= 0:
    # A block header follows every 64 KiB, even inside of a chunk.
    stream = b"".join(
      data[block + _BLOCK_HEADER : block + _BLOCK]
      for block in range(start, len(data), _BLOCK)
    )
    yield from _chunks(stream)
    start = data.find(_RIEGELI, start + 1)


def _chunks(stream: bytes) -> Iterator[bytes]:
  """Yields the values of the chunks of one file, up to its end."""
  position = 0
  while position + _CHUNK_HEADER <= len(stream):
    header = stream[position : position + _CHUNK_HEADER]
    # A header holds its hash, the size of the data, their hash, the kind, and
    # counts. The hashes are not checked, since the bytes come out of memory.
    (size,) = struct.unpack_from("<Q", header, 8)
    kind = header[24:25]
    position += _CHUNK_HEADER
    if kind not in (b"s", b"r") or position + size > len(stream):
      return  # the end of the file, or what follows it
    if kind == b"r":
      yield _values(stream[position : position + size])
    position += size


def _values(chunk: bytes) -> bytes:
  """Reads the values of a chunk, behind the sizes of its records."""
  length, position = _varint(chunk, 1)
  position += length
  if chunk[:1] == b"\0":
    return chunk[position:]
  if chunk[:1] != b"s":
    raise ValueError(f"records are compressed by {chunk[:1]!r}, not Snappy")
  _, position = _varint(chunk, position)  # Snappy repeats this length
  return unsnap(chunk, position)[0]


def cubins(serialized: bytes) -> list[bytes]:
  """Finds the GPU binaries of a serialised program, each of them once.

  Args:
    serialized: A program as XLA serialises it.
  """
  found: list[bytes] = []
  for value in records(serialized):
    found += cubins(value)
    start = value.find(_ELF)
    while start >= 0:
      image = _elf(value, start)
      if image and image not in found:
        found.append(image)
      start = value.find(_ELF, start + 1)
  return found


def _elf(data: bytes, start: int) -> bytes:
  """Cuts out the ELF file that starts at `start`; empty if it is none of a GPU.

  NVIDIA's files end with their program headers or section headers.
  """
  if len(data) < start + 64:
    return b""
  if struct.unpack_from("<H", data, start + 18)[0] != _CUDA_MACHINE:
    return b""
  program, section = struct.unpack_from("<QQ", data, start + 32)
  sizes = struct.unpack_from("<HHHHHH", data, start + 52)
  _, program_size, program_count, section_size, section_count, _ = sizes
  end = max(
    section + section_size * section_count,
    program + program_size * program_count,
  )
  return data[start : start + end] if start + end <= len(data) else b""
