"""Training states of one run, saved in the background and restored anywhere.

States go through Orbax's asynchronous manager under flat names, so that any
pytree can be saved and a restore may use another mesh.
"""

import base64
import collections.abc
import dataclasses
import os
import pathlib
import shutil
import typing

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from videomla_jax.storage import tree_names

PyTree = typing.Any
IteratorState = bytes | dict[str, typing.Any] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
  """One restored training state."""

  step: int
  state: PyTree
  iterator_state: IteratorState

  def __iter__(self) -> collections.abc.Iterator[typing.Any]:
    """Unpacks as `step, state, iterator_state`."""
    return iter((self.step, self.state, self.iterator_state))


class TrainCheckpoints:
  """Training states of one run: saved in the background, restored anywhere."""

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    keep: int = 3,
    save_every: int = 1,
  ) -> None:
    """Opens (and creates) the directory.

    Args:
      directory: Folder of this run's states, one sub-folder per step.
      keep: Newest states to keep, at least 1; 2 or more allow a fallback.
      save_every: Steps between two states; `save` ignores the steps between.

    Raises:
      ValueError: If a number is below 1.
    """
    for name, value in (("keep", keep), ("save_every", save_every)):
      if value < 1:
        raise ValueError(f"{name}={value} must be at least 1; use 1 or more")
    self._directory = pathlib.Path(directory).absolute()
    self._options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      save_interval_steps=save_every,
      enable_async_checkpointing=True,
      create=True,
    )
    self._manager = self._open()

  def save(
    self,
    step: int,
    state: PyTree,
    iterator_state: IteratorState,
    config: dict[str, typing.Any],
    *,
    force: bool = False,
  ) -> bool:
    """Starts writing a state; returns once the arrays may be overwritten.

    Args:
      step: Number of finished steps.
      state: Any pytree of arrays (modules, optimiser states, keys, ...).
      iterator_state: Position of the data iterator.
      config: Plain JSON values, stored beside the state.
      force: Save even if `step` is no multiple of `save_every`.

    Returns:
      Whether this step is being saved.
    """
    if step in self._manager.all_steps():
      return False
    if not force and not self._manager.should_save(step):
      return False
    meta = {"iterator": _encode_iterator(iterator_state), "config": config}
    arrays = {
      name: _saveable(x) for name, x in tree_names.flat_tree(state).items()
    }
    return self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)
      ),
      force=force,
    )

  def restore_latest(self, abstract_state: PyTree) -> Restored | None:
    """Restores the newest readable state.

    A state that cannot be read is set aside under `broken-<step>` with a
    warning, and the one before it is taken.

    Args:
      abstract_state: Pytree like the saved one, of arrays or of
        `jax.ShapeDtypeStruct`; a sharding there decides where a value goes.

    Returns:
      Step, state and iterator state; None if nothing was ever saved.

    Raises:
      ValueError: If the saved names or shapes differ from `abstract_state`, or
        if no state at all can be read.
    """
    self._manager.wait_until_finished()
    steps = sorted(self._manager.all_steps(), reverse=True)
    broken = []
    for step in steps:
      try:
        arrays, iterator_state = self._restore(step, abstract_state)
      except _MismatchError as error:
        raise ValueError(str(error)) from error
      except Exception as error:  # Any kind may come out of a damaged file.
        logging.warning(
          "training state %s/%d cannot be read (%s: %.200s); trying the one"
          " before it", self._directory, step, type(error).__name__, error,
        )  # fmt: skip
        broken.append(step)
        continue
      self._set_aside(broken)
      state = _unflatten_like(abstract_state, arrays)
      return Restored(step=step, state=state, iterator_state=iterator_state)
    if broken:
      raise ValueError(
        f"checkpoint directory {str(self._directory)!r} holds no readable"
        f" training state (tried steps {broken}); restore it from a backup, or"
        " move it away to start from step 0"
      )
    return None

  def config(self, step: int) -> dict[str, typing.Any]:
    """Returns the config that was saved with the state of `step`."""
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    return self._manager.restore(step, args=args)["meta"]["config"]

  def wait(self) -> None:
    """Blocks until every state that `save` started is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last state and frees the background threads."""
    self._manager.wait_until_finished()
    self._manager.close()

  def __enter__(self) -> "TrainCheckpoints":
    """Returns itself."""
    return self

  def __exit__(self, *unused: object) -> None:
    """Closes."""
    self.close()

  def _open(self) -> ocp.CheckpointManager:
    """Opens the manager with handlers for both items."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    arrays, text = ocp.StandardCheckpointHandler(), ocp.JsonCheckpointHandler()
    registry.add("state", ocp.args.StandardSave, arrays)
    registry.add("state", ocp.args.StandardRestore, arrays)
    registry.add("meta", ocp.args.JsonSave, text)
    registry.add("meta", ocp.args.JsonRestore, text)
    return ocp.CheckpointManager(
      self._directory, options=self._options, handler_registry=registry
    )

  def _restore(
    self, step: int, abstract_state: PyTree
  ) -> tuple[dict[str, jax.Array], IteratorState]:
    """Reads one step into flat arrays and the iterator state."""
    wanted = {
      k: _abstract(x) for k, x in tree_names.flat_tree(abstract_state).items()
    }
    saved = dict(self._manager.item_metadata(step)["state"])
    tree_names.check_same(
      {name: tuple(x.shape) for name, x in wanted.items()},
      {name: tuple(x.shape) for name, x in saved.items()},
      what=f"arrays of training state {self._directory}/{step}",
      error=_MismatchError,
    )
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(wanted), meta=ocp.args.JsonRestore()
      ),
    )
    return restored["state"], _decode_iterator(restored["meta"]["iterator"])

  def _set_aside(self, broken: list[int]) -> None:
    """Renames unreadable states, so that their steps can be saved again."""
    if not broken:
      return
    self._manager.close()
    if jax.process_index() == 0:
      for step in broken:
        target = self._directory / f"broken-{step}"
        shutil.rmtree(target, ignore_errors=True)
        (self._directory / str(step)).rename(target)
    self._manager = self._open()


class _MismatchError(ValueError):
  """The state on disk is fine, but not of the architecture asked for."""


def _unflatten_like(tree: PyTree, flat: dict[str, jax.Array]) -> PyTree:
  """Rebuilds the pytree, wrapping random keys again."""
  leaves = [
    jax.random.wrap_key_data(flat[name], impl=str(jax.random.key_impl(like)))
    if _is_key(like) and isinstance(like, jax.Array)
    else _wrap_abstract_key(flat[name], like)
    for name, like in tree_names.flat_tree(tree).items()
  ]
  return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _wrap_abstract_key(value: jax.Array, like: typing.Any) -> jax.Array:
  """Wraps key data for an abstract key; other values pass."""
  if not _is_key(like):
    return value
  return jax.random.wrap_key_data(value, impl=like.dtype._impl.name)


def _is_key(x: typing.Any) -> bool:
  """Tells whether a leaf is a typed random key."""
  dtype = getattr(x, "dtype", None)
  return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _saveable(x: typing.Any) -> typing.Any:
  """Turns a leaf into what Orbax stores, safe against later donation."""
  if _is_key(x):
    x = jax.random.key_data(x)
  if not isinstance(x, jax.Array):
    return np.array(x)
  # On CPU the background writer would read the very buffer that the next
  # train step, which donates its state, writes into.
  on_cpu = next(iter(x.devices())).platform == "cpu"
  return jnp.copy(x) if on_cpu else x


def _abstract(x: typing.Any) -> jax.ShapeDtypeStruct:
  """Describes a leaf for restoring, with a sharding in every case."""
  sharding = getattr(x, "sharding", None)
  if _is_key(x):
    x = jax.eval_shape(jax.random.key_data, x)
    sharding = None
  elif not hasattr(x, "shape"):
    x = np.asarray(x)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _encode_iterator(state: IteratorState) -> dict[str, typing.Any]:
  """Wraps an iterator state for JSON."""
  if isinstance(state, bytes):
    return {"bytes": base64.b64encode(state).decode("ascii")}
  return {"json": state}


def _decode_iterator(state: dict[str, typing.Any]) -> IteratorState:
  """Inverts `_encode_iterator`."""
  if "bytes" in state:
    return base64.b64decode(state["bytes"])
  return state["json"]
