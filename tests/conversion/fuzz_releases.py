"""Damaged networks of a release, which are told from their names and shapes.

Tensors are renamed and get other shapes; nothing is written. The VAE is left
out, since every new size of it costs a second.
"""

import json
import pathlib

import numpy as np
from safetensors import numpy as safetensors_numpy

from tests import checkpoint_fuzz
from tests import mutations
from tests import tiny_release
from videomla_jax.conversion import release

_PARTS = ("module.", "model.", "_orig_mod.", "blocks.", "x\x1b.", "a" * 600)


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  tables = {
    "dit": tiny_release.dit_table(),
    "umt5": tiny_release.umt5_names.table_of(tiny_release.UMT5),
  }
  seeds = []
  for name, table in tables.items():
    path = folder / f"{name}.safetensors"
    tensors = tiny_release.draw(table, rng, dtype=np.float16)
    safetensors_numpy.save_file(tensors, path)
    seeds.append(mutations.Seed(path, path))
  return seeds


def _mutate(data: bytes, rng: np.random.Generator) -> bytes:
  length = int.from_bytes(data[:8], "little")
  header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
  prefix = _PARTS[rng.integers(len(_PARTS))] if rng.integers(2) else ""
  changed = {f"{prefix}{n}": about for n, about in header.items()}
  for _ in range(rng.integers(4)):
    _change(changed, rng)
  text = json.dumps(changed).encode()
  if rng.integers(6) == 0:
    text = mutations.mutated(text, rng)
  return len(text).to_bytes(8, "little") + text + values


def _change(header: dict, rng: np.random.Generator) -> None:
  names = [*header]
  name = names[rng.integers(len(names))]
  about, kind = header[name], rng.integers(5)
  if kind == 0:
    parts = name.split(".")
    parts[rng.integers(len(parts))] = str(rng.integers(10**9))
    header[".".join(parts)] = header.pop(name)
  elif kind == 1:
    at = rng.integers(len(name) + 1)
    part = _PARTS[rng.integers(len(_PARTS))]
    header[name[:at] + part + name[at:]] = header.pop(name)
  elif kind == 2:
    # The same numbers in another shape.
    shape = [int(np.prod(about["shape"])), 1, 1, 1, 1]
    about["shape"] = shape[: rng.integers(1, 6)]
  elif kind == 3:
    other = header[names[rng.integers(len(names))]]
    header[name], header[names[0]] = other, about
  else:
    begin, _ = about["data_offsets"]
    about["shape"], about["data_offsets"] = [0], [begin, begin]


def _read(path: pathlib.Path) -> None:
  with release.open_network(path, num_heads=tiny_release.HEADS) as (_, tensors):
    checkpoint_fuzz.read_all(tensors)


READER = checkpoint_fuzz.reader(_seeds, _mutate, _read)
