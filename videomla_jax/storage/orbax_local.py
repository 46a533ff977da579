"""Orbax for one process, whatever the others do."""

import math
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from videomla_jax.storage import tree_names


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
