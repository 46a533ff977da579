"""Orbax for one process, whatever the others do."""

import math
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from videomla_jax.storage import tree_names

# Trained weights hardly get smaller when they are compressed. Only constant
# arrays do, which are small ones such as biases.
_RATIO = 16
_SLACK = 64 * 2**20


def checkpointer(*, use_ocdbt: bool) -> ocp.Checkpointer:
  """Makes a checkpointer of this process, which does not wait for the others.

  One of several processes may save a model, and each may load one. Orbax waits
  for all processes otherwise, for ever.

  Args:
    use_ocdbt: Whether all arrays go into one database; a folder each otherwise.
  """
  options = ocp.options.MultiprocessingOptions()
  if jax.process_count() > 1:
    index = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
      primary_host=index,
      active_processes={index},
      barrier_sync_key_prefix=f"process_{index}",
    )
  handler = ocp.PyTreeCheckpointHandler(
    use_ocdbt=use_ocdbt, multiprocessing_options=options
  )
  return ocp.Checkpointer(handler, multiprocessing_options=options)


def described(
  checkpointer: ocp.Checkpointer, path: pathlib.Path
) -> dict[str, Any]:
  """Returns shape, type and layout of every array, by names with slashes.

  Args:
    checkpointer: What reads them.
    path: Folder of the arrays, of which no number is read.
  """
  return tree_names.flat_dict(checkpointer.metadata(path).item_metadata.tree)


def num_bytes(array: Any) -> int:
  """Returns the memory that reading an array takes.

  Args:
    array: A value of `described`.
  """
  # A piece is decompressed as a whole, however small the array is.
  piece = getattr(array.storage, "chunk_shape", None) or array.shape
  size = max(math.prod(array.shape), math.prod(piece))
  return size * np.dtype(array.dtype).itemsize


def check_bytes(path: pathlib.Path, arrays: dict[str, Any]) -> None:
  """Refuses arrays that are much larger than the files that hold them.

  Args:
    path: Folder of the arrays.
    arrays: What `described` returns of it.

  Raises:
    ValueError: If they are.
  """
  stored = sum(x.stat().st_size for x in path.rglob("*") if x.is_file())
  total = sum(map(num_bytes, arrays.values()))
  if total > _RATIO * stored + _SLACK:
    raise ValueError(
      f"describes arrays of {total} bytes, which cannot come out of files of"
      f" {stored} bytes"
    )


def check_pieces(arrays: dict[str, Any]) -> None:
  """Refuses arrays whose pieces on disk are much larger than they are.

  Args:
    arrays: What `described` returns of a folder.

  Raises:
    ValueError: If reading them takes much more memory than they have.
  """
  needed = sum(
    math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in arrays.values()
  )
  total = sum(map(num_bytes, arrays.values()))
  if total > 2 * needed + _SLACK:
    raise ValueError(f"arrays of {needed} bytes lie in pieces of {total} bytes")


def restore(
  checkpointer: ocp.Checkpointer, path: pathlib.Path
) -> dict[str, Any]:
  """Reads a tree as NumPy arrays, whichever devices wrote it.

  Args:
    checkpointer: What reads them.
    path: Folder of the arrays.
  """
  tree = checkpointer.metadata(path).item_metadata.tree
  as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
  restore_args = jax.tree.map(lambda _: as_numpy, tree)
  return checkpointer.restore(path, restore_args=restore_args)
