"""Damaged data sets: shards, what TFDS reads, report and digests."""

import pathlib

import numpy as np

from tests import mutations
from tests import tiny_dataset
from videomla_jax.data import dataset
from videomla_jax.data import example_shape
from videomla_jax.data import reader


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  seeds = []
  # Without the list of digests every reader sees the damage itself.
  for name, digests in (("new", True), ("old", False)):
    root = tiny_dataset.write(folder / name, rng, digests=digests)
    files = [path for path in sorted(root.iterdir()) if path.stat().st_size]
    seeds += [mutations.Seed(root, path) for path in files]
  return seeds


def _read(root: pathlib.Path) -> None:
  shapes = example_shape.ExampleShape(
    latents=tiny_dataset.LATENTS, text=(8, tiny_dataset.WIDTH)
  )
  example_shape.check(root, shapes)
  dataset.read_null_text(root)
  records = reader.open_records(root, "train", shapes)
  for index in range(len(records)):
    records[index]
  reader.read_captions(root, shapes, 4)


READER = mutations.Reader(seeds=_seeds, read=_read, names_file=False)
