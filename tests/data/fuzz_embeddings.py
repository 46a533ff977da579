"""Damaged files of embeddings."""

import pathlib

import numpy as np

from tests import mutations
from videomla_jax.data import embeddings


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  path = folder / "prompts.safetensors"
  made = {
    name: rng.standard_normal((n, 8)).astype(np.float32)
    for name, n in (("a cat", 3), ("a dog", 5), ("", 1))
  }
  embeddings.add(path, made, encoder="e", cut={"a dog": 600})
  return [mutations.Seed(path, path)]


def _read(path: pathlib.Path) -> None:
  encoder = embeddings.encoder_of(path)
  embeddings.known(path, encoder=encoder)
  embeddings.num_cut(path, ["a cat"])
  embeddings.read(path, ["a cat", "a dog"])


READER = mutations.Reader(seeds=_seeds, read=_read)
