"""What the readers of damaged checkpoints have in common."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib

import numpy as np

from tests import mutations
from videomla_jax.storage import foreign_files
from videomla_jax.storage import lazy_tensor
from videomla_jax.storage import tensor_files


def read_all(tensors: Mapping[str, lazy_tensor.LazyTensor]) -> None:
  """Reads every tensor, which must have the shape that was promised."""
  for tensor in tensors.values():
    assert tensor.read().shape == tensor.shape


def read_file(path: pathlib.Path) -> None:
  """Reads every tensor of a checkpoint of any format."""
  with tensor_files.open_tensors(path) as tensors:
    read_all(tensors)


def reader(
  seeds: Callable[
    [pathlib.Path, np.random.Generator], Sequence[mutations.Seed]
  ],
  mutate: Callable[[bytes, np.random.Generator], bytes],
  read: Callable[[pathlib.Path], object] = read_file,
) -> mutations.Reader:
  """Makes the row of a format: refusals are those of `foreign_files`."""
  return mutations.Reader(
    seeds=seeds,
    read=read,
    mutate=mutate,
    errors=(ValueError, foreign_files.BadFileError),
  )
