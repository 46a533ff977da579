"""Model folders: a model that can be shipped.

A model folder is a directory: Orbax parameters in float32, `config.json`, and
`sha256.json` with the digest of every other file, so that damage is reported
before anything is computed from it.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import typing

from flax import nnx
import jax.numpy as jnp
from jaxtyping import PyTree
import numpy as np

from videomla_jax.storage import atomic
from videomla_jax.storage import devices
from videomla_jax.storage import orbax_local
from videomla_jax.storage import ordinary_files
from videomla_jax.storage import state_digests
from videomla_jax.storage import temporary_names
from videomla_jax.storage import tree_names

Json = dict[str, typing.Any]  # what `json` reads and writes
Arrays = dict[str, PyTree]  # nested dictionaries of arrays

CONFIG = "config.json"
DIGESTS = "sha256.json"
PARAMS = "params"
_MAKE_AGAIN = "restore it from git, or train and save the model again"


class MismatchError(ValueError):
  """The arrays are not those of the model; nothing of them was read."""


def save_model(
  path: str | os.PathLike[str],
  model: nnx.Module | Arrays,
  config: Json,
  *,
  keep_dtypes: bool = False,
  further: Callable[[pathlib.Path], None] | None = None,
) -> None:
  """Writes a model as a folder from which it can be built again.

  Everything is written under a temporary name, which is changed at the end, so
  that a reader never sees half a model. An older model at `path` is replaced,
  see `atomic.replacing_folder`.

  Args:
    path: Directory to create.
    model: A module, or its nested dictionary of arrays. Floating-point values
      are stored as float32; random-number state is left out.
    config: What is needed to build the module again; plain JSON values.
    keep_dtypes: Store floating-point values as they are.
    further: Adds files to the folder, which are digested like all others.

  Raises:
    ValueError: If `config` holds something that JSON cannot, a number is not
      finite, or something else than a model is at `path`.
  """
  path = pathlib.Path(path).absolute()
  # A config that JSON cannot hold must fail before the arrays are written.
  config_text(config)
  arrays = _portable(model_arrays(model), keep_dtypes=keep_dtypes)
  for name, value in tree_names.flat_dict(arrays).items():
    check_finite(name, value)
  with replacing(path) as temporary:
    # One database instead of a file per array keeps a shipped model to a
    # handful of files.
    with orbax_local.checkpointer(use_ocdbt=True) as checkpointer:
      checkpointer.save(temporary / PARAMS, arrays)
    if further is not None:
      further(temporary)
    finish_folder(temporary, config)


def replacing(
  path: str | os.PathLike[str],
) -> contextlib.AbstractContextManager[pathlib.Path]:
  """Gives an empty folder that becomes the model folder at the end.

  Args:
    path: Model folder to create or replace.

  Returns:
    A context of `atomic.replacing_folder`.
  """
  return atomic.replacing_folder(path, is_ours=_may_be_replaced)


def check_replaceable(path: str | os.PathLike[str]) -> None:
  """Refuses a path at which no model folder can be written.

  Args:
    path: Model folder to create or replace.

  Raises:
    ValueError: If a file is there, or a folder that holds something else.
  """
  atomic.check_replaceable_folder(path, is_ours=_may_be_replaced)


def check_finite(name: str, value: np.ndarray) -> None:
  """Refuses weights that would make nothing but noise.

  Args:
    name: Name of the parameter.
    value: Numbers of any type.

  Raises:
    ValueError: If a number is infinite or none.
  """
  if not jnp.issubdtype(value.dtype, jnp.floating):
    return
  bad = value.size - np.count_nonzero(np.isfinite(value))
  if bad:
    raise ValueError(
      f"{bad} of {value.size} numbers of {name!r} are not finite, so no model"
      " is written; take an earlier state of the run or another file."
    )


def config_text(config: Json) -> str:
  """Returns the text of `config.json`.

  Args:
    config: Plain JSON values.

  Raises:
    ValueError: If `config` holds something that JSON cannot.
  """
  try:
    return json.dumps(config, indent=2, sort_keys=True) + "\n"
  except TypeError as error:
    raise ValueError(
      f"config={type(config).__name__} must hold plain JSON values ({error});"
      " pass ConfigDict.to_dict() or dataclasses.asdict()"
    ) from error


def finish_folder(folder: pathlib.Path, config: Json) -> None:
  """Adds config and digests to a folder that holds all parameters.

  Args:
    folder: The folder, under its temporary name.
    config: What is needed to build the module again; plain JSON values.
  """
  (folder / CONFIG).write_text(config_text(config))
  # Without a newline at the end, the loss of the last byte is noticed, too.
  digests = json.dumps(_digests(folder), indent=2)
  (folder / DIGESTS).write_text(digests)


def load_model_state(
  path: str | os.PathLike[str], *, model: nnx.Module | None = None
) -> tuple[Arrays, Json]:
  """Reads what `save_model` wrote, after checking every byte of it.

  Args:
    path: Directory of one model.
    model: Module that the arrays are for, which may be abstract. With it, other
      arrays are refused before any of them is read.

  Returns:
    Nested dictionary of arrays with string keys, in the types in which they are
    stored, and the config. `update_model` puts the arrays into a module.

  Raises:
    ValueError: If the directory is missing, incomplete or damaged, or of
      another model.
    NotImplementedError: If JAX finds no device.
  """
  path = pathlib.Path(path).absolute()
  config = check_folder(path)
  devices.check()  # A platform that does not start is no fault of the folder.
  try:
    with orbax_local.checkpointer(use_ocdbt=True) as checkpointer:
      arrays = orbax_local.described(checkpointer, path / PARAMS)
      if model is not None:
        _check_fits(model, {n: tuple(x.shape) for n, x in arrays.items()})
      _check_bytes(path, arrays)
      return orbax_local.restore(checkpointer, path / PARAMS), config
  # Another model, a file that may not be opened, too little memory: no damage.
  except (MismatchError, OSError, MemoryError):
    raise
  # The digests are right, so it is of another kind; libraries raise many.
  except Exception as error:
    raise _damaged(path, f"cannot be read ({type(error).__name__})") from error


def read_config(path: str | os.PathLike[str]) -> Json:
  """Reads the config of a model directory, without checking its arrays.

  The config itself is compared with its digest, where there is one.

  Args:
    path: Directory of one model.

  Raises:
    ValueError: If the directory or its config is missing or damaged.
  """
  path = pathlib.Path(path).absolute()
  if not path.is_dir():
    # A writer may have been killed between two renames.
    temporary_names.recover(path.resolve())
  if not path.is_dir():
    raise _missing(path)
  config = _read_json(path, CONFIG)
  # A network is built from the config before the arrays are looked at.
  if (path / DIGESTS).is_file():
    listed = _read_json(path, DIGESTS).get(CONFIG)
    if listed not in (None, state_digests.sha256(path / CONFIG)):
      raise _damaged(path, f"has a file {CONFIG!r} with the wrong checksum")
  return config


def check_folder(path: pathlib.Path) -> Json:
  """Checks every byte of a model directory; returns the config.

  Args:
    path: Directory of one model.

  Raises:
    ValueError: If the directory is missing, incomplete or damaged.
  """
  config = read_config(path)
  for _, reason in problems(path):
    raise _damaged(path, reason)
  return config


def problems(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields what is wrong with a model directory, file by file.

  Args:
    path: Directory of one model.

  Yields:
    The name of a file in it, and what the directory has or lacks.

  Raises:
    ValueError: If config or list of digests cannot be read.
  """
  if not path.is_dir():
    raise _missing(path)
  _read_json(path, CONFIG)
  digests = _read_json(path, DIGESTS)
  # A list of digests that was cut short could otherwise be read as that of a
  # smaller model.
  if CONFIG not in digests:
    yield DIGESTS, f"has an incomplete file {DIGESTS!r}"
  for name, digest in digests.items():
    # Anybody may have written the list, and it must not make us read elsewhere.
    if not _is_inside(name):
      yield DIGESTS, f"lists {name[:80]!r}, which is outside of it,"
    elif not (path / name).is_file():
      yield name, f"lacks the file {name!r}"
    elif state_digests.sha256(path / name) != digest:
      yield name, f"has a file {name!r} with the wrong checksum"
  # A file that nobody wrote could stand for an array, or for a part of one.
  for file in sorted((path / PARAMS).rglob("*")):
    name = file.relative_to(path).as_posix()
    if not file.is_dir() and name not in digests:
      yield name, f"has a file {name!r} that nobody listed"


def is_model_folder(path: str | os.PathLike[str]) -> bool:
  """Tells whether a path is a folder that `save_model` wrote.

  Only config and digests are looked at, and no array is checked.
  """
  try:
    ordinary_files.read_json(pathlib.Path(path) / CONFIG)
  except ordinary_files.BadFile:
    return False
  # Folders of diffusers have a `config.json`, too, but no list of digests.
  return (pathlib.Path(path) / DIGESTS).exists()


def update_model(model: nnx.Module, params: Arrays) -> None:
  """Puts loaded arrays into a module, in the module's own types.

  Args:
    model: Module to fill, of the architecture that was saved.
    params: Nested dictionary from `load_model_state`.

  Raises:
    ValueError: If names or shapes differ; all differences are listed.
  """
  state = nnx.state(model, nnx.Not(nnx.RngState))
  expected = tree_names.flat_dict(nnx.to_pure_dict(state))
  loaded = tree_names.flat_dict(params)
  _check_fits(model, {name: np.shape(value) for name, value in loaded.items()})
  cast = {n: jnp.asarray(loaded[n], x.dtype) for n, x in expected.items()}
  nnx.replace_by_pure_dict(state, tree_names.nested_dict(cast))
  nnx.update(model, state)


def _check_bytes(path: pathlib.Path, arrays: dict[str, typing.Any]) -> None:
  """Refuses arrays that are much larger than the files that hold them."""
  try:
    orbax_local.check_bytes(path / PARAMS, arrays)
  except ValueError as error:
    raise MismatchError(
      f"checkpoint={str(path)!r} {error}; {_MAKE_AGAIN}"
    ) from error


def _check_fits(model: nnx.Module, shapes: dict[str, tuple[int, ...]]) -> None:
  """Refuses arrays of other names or shapes than those of a module."""
  expected = tree_names.flat_dict(model_arrays(model))
  tree_names.check_same(
    {name: value.shape for name, value in expected.items()},
    shapes,
    what="parameters of the checkpoint",
    error=MismatchError,
  )


def model_arrays(
  model: nnx.Module | Arrays,
) -> Arrays:
  """Returns a module's arrays, without random state, as a nested dictionary."""
  if isinstance(model, dict):
    return model
  return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState)))


def _portable(tree: PyTree, *, keep_dtypes: bool) -> PyTree:
  """Copies a tree to NumPy with string keys, floats perhaps as float32."""
  flat = {name: np.asarray(x) for name, x in tree_names.flat_dict(tree).items()}
  if keep_dtypes:
    return tree_names.nested_dict(flat)
  # NumPy's own `issubdtype` does not know bfloat16.
  floats = {n for n, x in flat.items() if jnp.issubdtype(x.dtype, jnp.floating)}
  return tree_names.nested_dict(
    {n: x.astype(np.float32) if n in floats else x for n, x in flat.items()}
  )


def _may_be_replaced(folder: pathlib.Path) -> bool:
  """Tells whether a folder is a model, which may be damaged."""
  described = any((folder / name).is_file() for name in (CONFIG, DIGESTS))
  return described and (folder / PARAMS).is_dir()


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """Computes the SHA-256 of every file by its name inside of the folder."""
  # The file system lists files in any order, on which the text must not depend.
  files = sorted(x for x in folder.rglob("*") if x.is_file())
  return {
    str(x.relative_to(folder).as_posix()): state_digests.sha256(x)
    for x in files
  }


def _is_inside(name: str) -> bool:
  """Tells whether a listed name stays inside of its folder."""
  parts = pathlib.PurePosixPath(name).parts
  return (
    bool(parts)
    # Another spelling would let one file be read again and again.
    and name == "/".join(parts)
    and name.isprintable()
    and not ({"..", "/"} & {*parts} or "\\" in name)
  )


def _read_json(path: pathlib.Path, name: str) -> Json:
  """Reads one of the two JSON files of a model directory."""
  if not os.path.lexists(path / name):
    raise _damaged(path, f"lacks the file {name!r}")
  try:
    return ordinary_files.read_json(path / name)
  except ordinary_files.BadFile as error:
    raise _damaged(path, f"has a file {name!r} that {error}") from error


def _missing(path: pathlib.Path) -> ValueError:
  """Builds the error for a model directory that is not there."""
  return ValueError(
    f"checkpoint={str(path)!r} is not a directory; give the folder that"
    f" holds {CONFIG}, or train or convert a model first"
  )


def _damaged(path: pathlib.Path, reason: str) -> ValueError:
  """Builds the one-sentence error for a bad model directory."""
  return ValueError(f"checkpoint={str(path)!r} {reason}; {_MAKE_AGAIN}")
