"""Damaged `config.json` and list of digests of a model folder."""

import pathlib

import numpy as np

from tests import mutations
from videomla_jax.storage import model_folder


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  path = folder / "model"
  arrays = {"a": {"b": rng.standard_normal((3, 4)).astype(np.float32)}}
  model_folder.save_model(path, arrays, dict(kind="small", sizes=[1, 2]))
  files = (model_folder.CONFIG, model_folder.DIGESTS)
  return [mutations.Seed(path, path / name) for name in files]


READER = mutations.Reader(
  seeds=_seeds, read=model_folder.check_folder, names_file=False
)
