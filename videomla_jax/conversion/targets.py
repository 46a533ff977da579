"""Places to write a conversion to, proved to be fit before any work is done."""

import os
import pathlib
import tempfile

from videomla_jax.storage import model_folder


def check_names(source: pathlib.Path, output: pathlib.Path) -> None:
  """Refuses what is no path.

  Args:
    source: What is converted.
    output: Where the user wants the result.

  Raises:
    ValueError: If one of them has a zero character.
  """
  for name, path in dict(source=source, output=output).items():
    if "\0" in str(path):
      raise ValueError(f"{name}={str(path)!r} has a zero character; remove it.")


def check(
  source: pathlib.Path,
  output: pathlib.Path,
  folders: list[pathlib.Path],
  *,
  export: bool,
) -> None:
  """Refuses an output that cannot be written, or whose loss would hurt.

  Args:
    source: What is converted.
    output: Where the user wants the result.
    folders: Model folders that will be created or replaced, or folders for
      the files of an export.
    export: Whether it is an export, which adds files to a folder.

  Raises:
    ValueError: If source and output lie in each other, if something else than a
      model would be replaced, or if nothing can be written there.
  """
  try:
    _check_apart(source, output)
    for folder in folders:
      _check_export(folder) if export else _check_replaceable(folder)
    if output.exists() and not output.is_dir():
      raise ValueError(
        f"output={str(output)!r} is a file; give the path of a folder."
      )
    parent = _existing(output)
    # A file is really made, since permissions alone do not tell of every
    # refusal, such as that of a read-only disk.
    with tempfile.TemporaryFile(dir=parent):
      pass
  except OSError as error:
    raise ValueError(
      f"output={str(output)!r} cannot be written ({error.strerror or error}); "
      "choose a folder that you may write to."
    ) from error


def _check_export(folder: pathlib.Path) -> None:
  if model_folder.is_model_folder(folder):
    raise ValueError(
      f"output={str(folder)!r} is a model folder, whose files would no longer "
      "be the model's alone; choose another folder for --export."
    )


def _check_replaceable(folder: pathlib.Path) -> None:
  try:
    model_folder.check_replaceable(folder)
  except ValueError as error:
    raise ValueError(f"--output: {error}") from error


def _check_apart(source: pathlib.Path, output: pathlib.Path) -> None:
  """Tensors are read while others are written, so neither holds the other."""
  given, made = (pathlib.Path(os.path.realpath(p)) for p in (source, output))
  if given == made:
    raise ValueError(
      f"output={str(output)!r} is the source; choose another folder."
    )
  for inner, outer, words in (
    (made, given, "lies in the source"),
    (given, made, "holds the source"),
  ):
    if inner.is_relative_to(outer):
      raise ValueError(
        f"output={str(output)!r} {words} {str(source)!r}; choose a folder "
        "beside it."
      )


def _existing(path: pathlib.Path) -> pathlib.Path:
  """Returns the nearest folder that is already there."""
  path = pathlib.Path(os.path.realpath(path))
  while not path.exists():
    path = path.parent
  if not path.is_dir():
    raise NotADirectoryError(20, f"{str(path)!r} is a file")
  return path
