"""Damaged tables: CSV and Parquet."""

import pathlib

import numpy as np
import pyarrow
from pyarrow import parquet

from tests import mutations
from videomla_jax.data import table

_COLUMNS = {
  "video": ["a.mp4", "b", "deep/c.mp4", "c.mp4"] * 3,
  "caption": ["a cat; asleep", 'a "dog"', "a café &amp; more", "x"] * 3,
  "start": [0.0, 1.5, None, 3.0] * 3,
  "fps": [24.0, 25.0, 30.0, None] * 3,
}


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  del rng
  videos = folder / "videos"
  (videos / "deep").mkdir(parents=True)
  for name in ("a.mp4", "b.mp4", "deep/c.mp4"):
    (videos / name).touch()
  made = pyarrow.table(_COLUMNS)
  paths = [folder / f"{name}.parquet" for name in ("plain", "packed")]
  parquet.write_table(made, paths[0], compression="none")
  parquet.write_table(made, paths[1], compression="zstd")
  rows = [*zip(*_COLUMNS.values(), strict=True)]
  for name, mark in (("comma", ","), ("semicolon", ";")):
    quoted = [
      mark.join('"' + str(x).replace('"', '""') + '"' for x in row)
      for row in [tuple(_COLUMNS), *rows]
    ]
    paths.append(folder / f"{name}.csv")
    paths[-1].write_text("\n".join(quoted).replace('"None"', "") + "\n")
  return [mutations.Seed(path, path) for path in paths]


def _read(path: pathlib.Path) -> table.Table:
  return table.read_table(path, videos=path.parent / "videos")


READER = mutations.Reader(seeds=_seeds, read=_read)
