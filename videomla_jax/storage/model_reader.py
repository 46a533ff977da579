"""Model folders read parameter by parameter."""

import os
import pathlib
from typing import Any

import numpy as np
import tensorstore

from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names


class ModelReader:
  """Reads a model folder parameter by parameter.

  A folder that was not written in pieces is read as a whole.
  """

  def __init__(self, path: str | os.PathLike[str]) -> None:
    """Opens the folder and checks every byte of it.

    Args:
      path: A model folder.

    Raises:
      ValueError: If the folder is missing, incomplete or damaged.
    """
    self._path = pathlib.Path(path).absolute()
    self.config = model_folder.check_folder(self._path)
    params = self._path / model_folder.PARAMS
    self._arrays: dict[str, Any] = {}
    # Only `ModelWriter` leaves a folder for each array. Opening one reads its
    # description, and the numbers stay on disk until `read`.
    for folder in sorted(params.glob("*/.zarray")):
      name = folder.parent.name.replace(".", "/")
      self._arrays[name] = tensorstore.open(
        {
          "driver": "zarr",
          "kvstore": {"driver": "file", "path": f"{folder.parent}/"},
        },
        read=True,
      ).result()
    if not self._arrays:
      arrays, _ = model_folder.load_model_state(self._path)
      self._arrays = tree_names.flat_dict(arrays)

  def names(self) -> list[str]:
    """Returns the names of all parameters, with slashes."""
    return list(self._arrays)

  def dtype(self, name: str) -> np.dtype:
    """Returns the type in which a parameter is stored."""
    dtype = self._arrays[name].dtype
    return getattr(dtype, "numpy_dtype", dtype)

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of a parameter, with blocks stacked."""
    return tuple(self._arrays[name].shape)

  def read(self, name: str, *, block: int | None = None) -> np.ndarray:
    """Reads a parameter, or one block of it.

    Args:
      name: Name of the parameter, with slashes.
      block: Index on the leading axis of a stacked parameter.
    """
    array = self._arrays[name]
    array = array if block is None else array[block]
    return array if isinstance(array, np.ndarray) else array.read().result()
