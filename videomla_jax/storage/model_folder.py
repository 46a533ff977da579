"""Model folders: a model that can be shipped.

A model folder is a directory: Orbax parameters in float32, `config.json`, and
`sha256.json` with the digest of every other file, so that damage is reported
before anything is computed from it.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import typing

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import numpy as np
import orbax.checkpoint as ocp

from videomla_jax.storage import atomic
from videomla_jax.storage import devices
from videomla_jax.storage import state_digests
from videomla_jax.storage import temporary_names
from videomla_jax.storage import tree_names

Json = dict[str, typing.Any]  # what `json` reads and writes
Arrays = dict[str, PyTree]  # nested dictionaries of arrays

CONFIG = "config.json"
DIGESTS = "sha256.json"
PARAMS = "params"
_MAKE_AGAIN = "restore it from git, or train and save the model again"


def save_model(
  path: str | os.PathLike[str],
  model: nnx.Module | Arrays,
  config: Json,
  *,
  keep_dtypes: bool = False,
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
    with local_checkpointer(use_ocdbt=True) as checkpointer:
      checkpointer.save(temporary / PARAMS, arrays)
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


def local_checkpointer(*, use_ocdbt: bool) -> ocp.Checkpointer:
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
  path: str | os.PathLike[str],
) -> tuple[Arrays, Json]:
  """Reads what `save_model` wrote, after checking every byte of it.

  Args:
    path: Directory of one model.

  Returns:
    Nested dictionary of arrays with string keys, in the types in which they are
    stored, and the config. `update_model` puts the arrays into a module.

  Raises:
    ValueError: If the directory is missing, incomplete or damaged.
    NotImplementedError: If JAX finds no device.
  """
  path = pathlib.Path(path).absolute()
  config = check_folder(path)
  devices.check()
  try:
    return _restore_arrays(path / PARAMS), config
  # The digests are right, so Orbax does not know what it has written.
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise _damaged(path, f"cannot be read ({type(error).__name__})") from error


def read_config(path: str | os.PathLike[str]) -> Json:
  """Reads the config of a model directory, without checking its arrays.

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
  return _read_json(path, CONFIG)


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
  read_config(path)
  digests = _read_json(path, DIGESTS)
  # A list of digests that was cut short could otherwise be read as that of a
  # smaller model.
  if CONFIG not in digests:
    yield DIGESTS, f"has an incomplete file {DIGESTS!r}"
  for name, digest in digests.items():
    if not (path / name).is_file():
      yield name, f"lacks the file {name!r}"
    elif state_digests.sha256(path / name) != digest:
      yield name, f"has a file {name!r} with the wrong checksum"


def is_model_folder(path: str | os.PathLike[str]) -> bool:
  """Tells whether a path is a folder that `save_model` wrote.

  Only config and digests are looked at, and no array is checked.
  """
  try:
    text = (pathlib.Path(path) / CONFIG).read_text()
    # Folders of diffusers have a `config.json`, too, but no list of digests.
    return (
      isinstance(json.loads(text), dict)
      and (pathlib.Path(path) / DIGESTS).exists()
    )
  except (OSError, ValueError):
    return False


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
  tree_names.check_same(
    {name: value.shape for name, value in expected.items()},
    {name: np.shape(value) for name, value in loaded.items()},
    what="parameters of the checkpoint",
  )
  cast = {n: jnp.asarray(loaded[n], x.dtype) for n, x in expected.items()}
  nnx.replace_by_pure_dict(state, tree_names.nested_dict(cast))
  nnx.update(model, state)


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


def _restore_arrays(path: pathlib.Path) -> Arrays:
  """Reads an Orbax tree as NumPy arrays, whichever devices wrote it."""
  with local_checkpointer(use_ocdbt=True) as checkpointer:
    tree = checkpointer.metadata(path).item_metadata.tree
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    restore_args = jax.tree.map(lambda _: as_numpy, tree)
    return checkpointer.restore(path, restore_args=restore_args)


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


def _read_json(path: pathlib.Path, name: str) -> Json:
  """Reads one of the two JSON files of a model directory."""
  try:
    value = json.loads((path / name).read_bytes())
  except FileNotFoundError as error:
    raise _damaged(path, f"lacks the file {name!r}") from error
  except (OSError, ValueError) as error:
    raise _damaged(path, f"has an unreadable file {name!r}") from error
  if not isinstance(value, dict):
    raise _damaged(path, f"has no JSON object in {name!r}")
  return value


def _missing(path: pathlib.Path) -> ValueError:
  """Builds the error for a model directory that is not there."""
  return ValueError(
    f"checkpoint={str(path)!r} is not a directory; give the folder that"
    f" holds {CONFIG}, or train or convert a model first"
  )


def _damaged(path: pathlib.Path, reason: str) -> ValueError:
  """Builds the one-sentence error for a bad model directory."""
  return ValueError(f"checkpoint={str(path)!r} {reason}; {_MAKE_AGAIN}")
