"""Folder and description of parameters that Orbax reads, still empty."""

from collections.abc import Mapping
import json
import pathlib
import shutil
from typing import NamedTuple

import numpy as np

from videomla_jax.storage import orbax_local
from videomla_jax.storage import tree_names

# Bytes of a piece on disk, and of its copy in memory while it is written.
_PIECE_BYTES = 32 * 2**20


class Parameter(NamedTuple):
  """A parameter that is to be written.

  Attributes:
    shape: Shape in our layout, with blocks stacked.
    dtype: Type in which the numbers are stored.
    blocks: Whether the leading axis counts blocks.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  blocks: bool


def file_name(name: str) -> str:
  """Returns the folder of a parameter, whose name has slashes."""
  # Orbax names the folders like this where it keeps no database.
  return name.replace("/", ".")


def write_skeleton(path: pathlib.Path, specs: Mapping[str, Parameter]) -> None:
  """Lets Orbax describe the tree, with one number in place of every array."""
  tree = tree_names.nested_dict(dict.fromkeys(specs, np.zeros((), np.float32)))
  with orbax_local.checkpointer(use_ocdbt=False) as checkpointer:
    checkpointer.save(path, tree)


def rows(shape: tuple[int, ...], dtype: np.dtype) -> int:
  """Counts the rows of the leading axis that make up one piece."""
  row = int(np.prod(shape[1:])) * dtype.itemsize
  return max(1, min(shape[0], _PIECE_BYTES // max(row, 1)))


def piece_name(index: list[int]) -> str:
  """Returns the file of one piece of a parameter."""
  return ".".join(map(str, index)) or "0"


def describe(folder: pathlib.Path, spec: Parameter) -> None:
  """Writes how an array lies on disk: in the Zarr 2 format, not compressed.

  Weights hardly get smaller, and raw pieces need no second copy in memory.
  """
  chunks = list(spec.shape)
  inner = spec.shape[1:] if spec.blocks else spec.shape
  if inner:
    chunks[-len(inner)] = rows(inner, spec.dtype)
  if spec.blocks:
    # A block is then read and written without touching its neighbours.
    chunks[0] = 1
  # NumPy's own codes for bfloat16 and float8 say only how many bytes they have.
  dtype = spec.dtype.name if spec.dtype.kind == "V" else spec.dtype.str
  about = dict(
    zarr_format=2,
    shape=list(spec.shape),
    chunks=chunks,
    dtype=dtype,
    compressor=None,
    fill_value=None,
    filters=None,
    order="C",
    dimension_separator=".",
  )
  # The number that stood for the array goes, with what Orbax wrote about it.
  shutil.rmtree(folder)
  folder.mkdir()
  (folder / ".zarray").write_text(json.dumps(about))
