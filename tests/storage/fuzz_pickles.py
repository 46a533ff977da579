"""Damaged `.pth` files: their bytes, their members, their pickles' operations.

A damaged byte of an archive is mostly found by its checksums, so most of the
damage is done to members, of which a sound archive is made again.
"""

import io
import pathlib
import pickletools
import warnings
import zipfile

import ml_dtypes
import numpy as np

from tests import checkpoint_fuzz
from tests import mutations
from tests import tiny_release

_OPERATIONS = bytes(ord(o.code) for o in pickletools.opcodes)
_WORDS = (
  b"FloatStorage", b"HalfStorage", b"BoolStorage", b"UntypedStorage",
  b"_rebuild_tensor_v2", b"_rebuild_tensor_v3", b"_rebuild_parameter",
  b"OrderedDict", b"defaultdict", b"Size", b"device", b"torch", b"os",
  b"collections", b"system", b"float8_e4m3fn", b"Namespace", b"storage",
)  # fmt: skip


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  seeds = []
  for i, dtype in enumerate((np.float32, ml_dtypes.bfloat16)):
    network = {
      f"layer.{n}": rng.standard_normal((n + 1, 3)).astype(dtype)
      for n in range(4)
    }
    content = network if i else {"generator_ema": network, "step": 7}
    path = folder / f"given_{i}.pth"
    tiny_release.write_pth(path, content)
    seeds.append(mutations.Seed(path, path))
  return seeds


def _mutate(data: bytes, rng: np.random.Generator) -> bytes:
  if rng.integers(5) == 0:
    return mutations.mutated(data, rng)
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    members = [[i.filename, archive.read(i)] for i in archive.infolist()]
  for _ in range(rng.integers(1, 4)):
    _change(members, rng)
  written = io.BytesIO()
  kind = zipfile.ZIP_DEFLATED if rng.integers(20) == 0 else zipfile.ZIP_STORED
  with (
    warnings.catch_warnings(),
    zipfile.ZipFile(written, "w", kind) as archive,
  ):
    warnings.simplefilter("ignore")  # names that are there twice
    for name, content in members:
      with archive.open(zipfile.ZipInfo(str(name)), "w") as member:
        member.write(content)
  made = written.getvalue()
  return _header(made, rng) if rng.integers(6) == 0 else made


def _change(members: list, rng: np.random.Generator) -> None:
  """Damages the pickle mostly, and else a storage or the list of members."""
  if not members:
    return
  kind, i = rng.integers(12), rng.integers(len(members))
  if kind < 7:
    members[0][1] = _program(members[0][1], rng)
  elif kind == 7:
    members[i][1] = mutations.mutated(members[i][1], rng)
  elif kind == 8:
    del members[i]
  elif kind == 9:
    members[i][0] = members[rng.integers(len(members))][0]
  elif kind == 10:
    members[i][0] = (
      mutations.mutated(members[i][0].encode(), rng)
      .decode("latin-1")[:200]
      .replace("\0", "")
    )
  else:
    members[i], members[0] = members[0], members[i]


def _program(data: bytes, rng: np.random.Generator) -> bytes:
  """Damages operations of a pickle where they begin, so that most still run."""
  try:
    places = [at for _, _, at in pickletools.genops(data)]
  except Exception:  # it was damaged before
    return mutations.mutated(data, rng)
  cuts = sorted(rng.choice(places, 2))
  first, second = (int(x) for x in cuts)
  buffer = bytearray(data)
  kind = rng.integers(7)
  if kind == 0:
    buffer[first] = _OPERATIONS[rng.integers(len(_OPERATIONS))]
  elif kind == 1:
    at = int(rng.integers(len(_OPERATIONS)))
    buffer[first:first] = _OPERATIONS[at : at + 1] * int(rng.integers(1, 9))
  elif kind == 2:
    del buffer[first:second]
  elif kind == 3:
    buffer[first:first] = buffer[first:second][:2000]
  elif kind == 4:
    word, other = (_WORDS[rng.integers(len(_WORDS))] for _ in range(2))
    return data.replace(word, other)
  elif kind == 5:
    return mutations.mutated(data, rng)
  else:
    # A number of an operation: a size, an index or a place.
    width = (1, 2, 4)[rng.integers(3)]
    value = int(rng.integers(256)) << 8 * int(rng.integers(width))
    buffer[first + 1 : first + 1 + width] = value.to_bytes(width, "little")
  return bytes(buffer)


def _header(data: bytes, rng: np.random.Generator) -> bytes:
  """Damages a header of the archive."""
  marks = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06")
  at = data.rfind(marks[rng.integers(3)])
  buffer = bytearray(data)
  start = max(at, 0) + int(rng.integers(46))
  width = (1, 2, 4)[rng.integers(3)]
  buffer[start : start + width] = rng.bytes(width)
  return bytes(buffer)


READER = checkpoint_fuzz.reader(_seeds, _mutate)
