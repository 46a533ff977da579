"""Damaged prompt files."""

import pathlib

import numpy as np

from tests import mutations
from videomla_jax.data import prompt_files


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  path = folder / "prompts.txt"
  words = rng.choice(["a cat", "café", "; &amp;", "\u2028", "雪"], 40)
  path.write_text("\r\n".join(words), encoding="utf-8-sig")
  return [mutations.Seed(path, path)]


READER = mutations.Reader(seeds=_seeds, read=prompt_files.read_prompts)
