"""Damaged indexes of shards: their bytes, and the files that they name."""

import json
import pathlib

import numpy as np

from tests import checkpoint_fuzz
from tests import mutations
from tests import tiny_release

_FILES = (
  None, 7, "", ".", "..", "../x", "/etc/passwd", "a\0b", "x" * 300, "\x1b[2J",
  "model.safetensors.index.json", ["a"], {"a": "b"}, "\ud800", "sub/x",
)  # fmt: skip


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  tensors = {
    f"layer.{n}": rng.standard_normal((n + 1, 3)).astype(np.float32)
    for n in range(4)
  }
  tiny_release.write_shards(folder, tensors, 2)
  path = folder / "model.safetensors.index.json"
  return [mutations.Seed(path, path)]


def _mutate(data: bytes, rng: np.random.Generator) -> bytes:
  if rng.integers(3) == 0:
    return mutations.mutated(data, rng)
  index = json.loads(data)
  shards, kind = index["weight_map"], rng.integers(5)
  value = _FILES[rng.integers(len(_FILES))]
  if kind == 0:
    index["weight_map"] = value
  elif kind == 1:
    return json.dumps(value).encode()
  elif kind == 2:
    depth = int(rng.integers(1, 200_000))
    return b'{"weight_map":' * depth + b"1" + b"}" * depth
  elif kind == 3:
    shards[f"other\x1b{kind}" * int(rng.integers(1, 100))] = value
  else:
    shards[[*shards][rng.integers(len(shards))]] = value
  return json.dumps(index).encode()


READER = checkpoint_fuzz.reader(_seeds, _mutate)
