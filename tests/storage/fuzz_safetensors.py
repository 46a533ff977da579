"""Damaged safetensors files: their bytes, and fields of their headers."""

import json
import pathlib

import numpy as np
from safetensors import numpy as safetensors_numpy

from tests import checkpoint_fuzz
from tests import mutations

_VALUES = (
  None, True, -1, 0, 1, 2**31, 2**63, 2**64, 1e308, "", "F32", "F8_E4M3",
  "\x1b[2J\0", [], [0], [-1, 4], [2**63, 2**63], [[]], {}, {"dtype": "F32"},
)  # fmt: skip


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  path = folder / "given.safetensors"
  tensors = {
    f"layer.{n}": rng.standard_normal((n + 1, 3)).astype(np.float32)
    for n in range(4)
  }
  safetensors_numpy.save_file(tensors, path, metadata={"format": "pt"})
  return [mutations.Seed(path, path)]


def _mutate(data: bytes, rng: np.random.Generator) -> bytes:
  if rng.integers(3) == 0:
    return mutations.mutated(data, rng)
  length = int.from_bytes(data[:8], "little")
  header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
  for _ in range(rng.integers(1, 3)):
    _change(header, rng)
  text = json.dumps(header).encode()
  if rng.integers(8) == 0:
    depth = int(rng.integers(1, 200_000))
    text = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
  elif rng.integers(8) == 0:
    text = mutations.mutated(text, rng)
  return len(text).to_bytes(8, "little") + text + values


def _change(header: dict, rng: np.random.Generator) -> None:
  names = [*header]
  name = names[rng.integers(len(names))]
  value = _VALUES[rng.integers(len(_VALUES))]
  about, kind = header[name], rng.integers(5)
  if kind == 0:
    header[name] = value
  elif kind == 1:
    header[f"{name}\x1b\0" * int(rng.integers(1, 200))] = about
  elif kind == 2:
    header[name] = header[names[rng.integers(len(names))]]
  elif isinstance(about, dict) and about:
    fields = [*about]
    field = fields[rng.integers(len(fields))]
    if kind == 3:
      about[field] = value
    elif isinstance(about[field], list) and about[field]:
      about[field][rng.integers(len(about[field]))] = value


READER = checkpoint_fuzz.reader(_seeds, _mutate)
