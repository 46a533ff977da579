"""Model folders written parameter by parameter.

They are the same folders as `model_folder.save_model` writes, for models that
are larger than memory should hold at once. Every parameter is an array on disk
by itself, and a stacked one has a piece per block, so that a network passes
through memory tensor by tensor.
"""

from collections.abc import Mapping
import contextlib
import os
import pathlib
import types
from typing import Any

import numpy as np

from videomla_jax.storage import model_folder
from videomla_jax.storage import params_skeleton


class ModelWriter:
  """Writes a model folder, which appears when it is complete.

  `with ModelWriter(path, specs, config) as writer: writer.write(name, x)`. The
  folder gets its name when all parameters are written and the block ends
  without an error; otherwise nothing is left.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    specs: Mapping[str, params_skeleton.Parameter],
    config: dict[str, Any],
  ) -> None:
    """Notes what is to be written; the folder is made by `with`.

    Args:
      path: Folder to create or replace.
      specs: Every parameter by its name, with slashes.
      config: What is needed to build the module again; plain JSON values.
    """
    self._path = pathlib.Path(path).absolute()
    self._config, self._specs = config, dict(specs)
    self._left: dict[str, set[int | None]] = {
      name: set(range(spec.shape[0])) if spec.blocks else {None}
      for name, spec in specs.items()
    }

  def __enter__(self) -> "ModelWriter":
    with contextlib.ExitStack() as stack:
      self._temporary = stack.enter_context(model_folder.replacing(self._path))
      params = self._temporary / model_folder.PARAMS
      params_skeleton.write_skeleton(params, self._specs)
      for name, spec in self._specs.items():
        params_skeleton.describe(params / params_skeleton.file_name(name), spec)
      # Python does not call `__exit__` if `__enter__` raises, so until here the
      # block above tidies up.
      self._stack = stack.pop_all()
    return self

  def write(
    self, name: str, value: np.ndarray, *, block: int | None = None
  ) -> None:
    """Writes a parameter, or one block of it, in pieces.

    Args:
      name: Name of the parameter in `specs`.
      value: The parameter in our layout; it is cast to the dtype of its spec.
      block: Index on the leading axis of a stacked parameter.

    Raises:
      ValueError: If a number is not finite.
    """
    spec = self._specs[name]
    expected = spec.shape[1:] if spec.blocks else spec.shape
    assert value.shape == expected, (name, value.shape, expected)
    # This raises if a caller writes the same block twice.
    self._left[name].remove(block)
    self._write(name, value, block)

  def add_file(self, name: str, text: str) -> None:
    """Adds a text file to the folder.

    Args:
      name: Name of the file.
      text: What it says.
    """
    (self._temporary / name).write_text(text)

  def _write(self, name: str, value: np.ndarray, block: int | None) -> None:
    """Writes the pieces of one tensor, each as a file of raw values."""
    spec = self._specs[name]
    folder = (
      self._temporary / model_folder.PARAMS / params_skeleton.file_name(name)
    )
    rows = params_skeleton.rows(value.shape, spec.dtype) if value.ndim else 1
    value = value if value.ndim else value[None]
    for i in range(0, len(value), rows):
      piece = np.ascontiguousarray(value[i : i + rows], spec.dtype)
      model_folder.check_finite(name, piece)
      # A piece is named for its place: the block, the rows, and zeros for the
      # axes that are not cut.
      index = [] if block is None else [block]
      index += [i // rows, *(0,) * (len(spec.shape) - len(index) - 1)]
      with (folder / params_skeleton.piece_name(index[: len(spec.shape)])).open(
        "wb"
      ) as file:
        piece.tofile(file)
        # The format wants every piece in full size; the rows beyond are zeros.
        missing = (rows - len(piece)) * piece[0].nbytes
        file.write(bytes(missing))

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    if error is not None:
      self._stack.__exit__(kind, error, trace)
      return
    # The folder takes its name when this block ends without an error.
    with self._stack:
      missing = sorted(name for name, left in self._left.items() if left)
      assert not missing, f"not written: {missing[:6]}"
      model_folder.finish_folder(self._temporary, self._config)
