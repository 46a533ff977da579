"""Damaged SentencePiece models, which are then used on a few texts."""

import pathlib

import numpy as np

from tests import mutations
from tests import tiny_release
from videomla_jax.models import tokenizer
from videomla_jax.storage import foreign_files


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  del rng
  path = folder / tokenizer.FILE
  tiny_release.write_tokenizer(path)
  return [mutations.Seed(path, path)]


def _read(path: pathlib.Path) -> None:
  tokenizer.Tokenizer.load(path)(
    [*tiny_release.PROMPTS, "", "\u2581 \U0001f98a"]
  )


READER = mutations.Reader(
  seeds=_seeds, read=_read, errors=(ValueError, foreign_files.BadFileError)
)
