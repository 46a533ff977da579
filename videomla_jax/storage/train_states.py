"""Training states of one run: saved in the background, restored on any mesh.

States go through Orbax's asynchronous manager under flat names, so that any
pytree can be saved, and a restore may use another mesh. Every state lists the
digests of its files (`state_digests`), which are compared before a restore.
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
from jax.experimental import multihost_utils
from jaxtyping import PyTree
import numpy as np
import orbax.checkpoint as ocp

from videomla_jax.storage import devices
from videomla_jax.storage import orbax_local
from videomla_jax.storage import ordinary_files
from videomla_jax.storage import state_commit
from videomla_jax.storage import state_damage
from videomla_jax.storage import state_digests
from videomla_jax.storage import state_leaves
from videomla_jax.storage import tree_names

Json = dict[str, typing.Any]  # what `json` reads and writes
IteratorState = bytes | Json | None

_MAX_REASON = 400  # bytes that are sent to other processes
# What Orbax raises for damaged files. The platform raises RuntimeError.
_OF_DAMAGED_FILES = (
  *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError),
  *(EOFError, AssertionError),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
  """A training state that was restored.

  Attributes:
    step: Number of finished steps.
    state: The pytree, with arrays where they were asked to lie.
    iterator_state: Position of the data iterator.
  """

  step: int
  state: PyTree
  iterator_state: IteratorState

  def __iter__(self) -> collections.abc.Iterator[typing.Any]:
    """Iterates over step, state and iterator state, to unpack them."""
    return iter((self.step, self.state, self.iterator_state))


Agrees = collections.abc.Callable[[Restored], str]


class TrainCheckpoints:
  """The folder of a run's training states, one sub-folder per step."""

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    keep: int = 3,
    save_every: int = 1,
  ) -> None:
    """Opens the directory, and creates it if it is missing.

    Args:
      directory: Folder of this run's states.
      keep: Number of newest states to keep, at least 1. With 2 or more, a
        damaged state can be replaced by the one before it.
      save_every: Steps from one state to the next; `save` ignores the others.

    Raises:
      ValueError: If a number is below 1.
      NotImplementedError: If JAX finds no device.
    """
    devices.check()
    for name, value in (("keep", keep), ("save_every", save_every)):
      if value < 1:
        raise ValueError(f"{name}={value} must be at least 1; use 1 or more")
    self._directory = pathlib.Path(directory).absolute()
    self._options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      save_interval_steps=save_every,
      enable_async_checkpointing=True,
      create=True,
      # What killed processes left; only one run is in the folder.
      cleanup_tmp_directories=True,
      temporary_path_class=state_commit.ListedPath,
    )
    self._manager = self._open()

  def save(
    self,
    step: int,
    state: PyTree,
    iterator_state: IteratorState,
    config: Json,
    *,
    force: bool = False,
  ) -> bool:
    """Starts writing a state; returns once the arrays may be overwritten.

    Args:
      step: Number of finished steps.
      state: Any pytree of arrays: modules, optimiser states, random keys.
      iterator_state: Position of the data iterator.
      config: Plain JSON values, stored beside the state.
      force: Whether to save even if `step` is no multiple of `save_every`.

    Returns:
      Whether this step is being saved.
    """
    # Orbax refuses a step that exists, such as the last one of a run that is
    # saved again at its end.
    if step in self._manager.all_steps():
      return False
    if not force and not self._manager.should_save(step):
      return False
    meta = {
      "iterator": _encode_iterator(iterator_state),
      "config": config,
      "step": step,
      state_damage.LISTED: True,
    }
    arrays = {
      name: state_leaves.saveable(x)
      for name, x in tree_names.flat_tree(state).items()
    }
    return self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)
      ),
      force=force,
    )

  def restore_latest(
    self, abstract_state: PyTree, *, agrees: Agrees = lambda restored: ""
  ) -> Restored | None:
    """Restores the newest state that is whole.

    Each state is compared with its list of digests. One that differs is set
    aside under `broken-<step>` with a warning, and the one before it is taken.

    Args:
      abstract_state: Pytree like the saved one, of arrays or of
        `jax.ShapeDtypeStruct`; a sharding there decides where a value goes.
      agrees: Says what does not fit together in a restored state, or nothing.

    Returns:
      Step, state and iterator state; None if nothing was ever saved.

    Raises:
      ValueError: If the saved names or shapes differ from `abstract_state`, if
        files cannot be opened, or if no state at all is whole.
    """
    self._manager.wait_until_finished()
    broken: list[int] = []
    for step in self.steps():
      reason, restored = self._damage(step), None
      if not reason:
        reason, restored = self._restore(step, abstract_state)
      if restored is not None:
        reason = agrees(restored)
      if reason or restored is None:
        logging.warning(
          "training state %s/%d is damaged (%.200s); trying the one before it",
          self._directory, step, reason,
        )  # fmt: skip
        broken.append(step)
        continue
      # Nothing is moved before one state was read: if none can be read, the
      # fault may lie with this machine and not with the files.
      self._set_aside(broken)
      return restored
    if broken:
      raise ValueError(
        f"checkpoint directory {str(self._directory)!r} holds no readable"
        f" training state (tried steps {broken}); restore it from a backup, or"
        " move it away to start from step 0"
      )
    return None

  def steps(self) -> list[int]:
    """Returns the steps of all finished states, the newest first."""
    return sorted(self._manager.all_steps(), reverse=True)

  def newest_config(self) -> Json | None:
    """Returns the config of the newest state whose config is whole.

    No array is read.
    """
    for step in self.steps():
      folder = self._directory / str(step)
      try:
        meta = ordinary_files.read_json(folder / state_damage.META)
        if not state_digests.exists(folder) or state_digests.is_whole(
          folder, state_damage.META
        ):
          return meta["config"]
      except (OSError, ValueError, KeyError, TypeError):
        continue  # `restore_latest` says what is wrong.
    return None

  def config(self, step: int) -> Json:
    """Returns the config that was saved with the state of `step`.

    Args:
      step: One of `steps`.
    """
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
    """Returns the open folder, for a `with` block."""
    return self

  def __exit__(self, *unused: object) -> None:
    """Waits for the last state and closes the folder."""
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

  def _damage(self, step: int) -> str:
    """Says what is wrong with the files of a state, the same in all processes.

    Args:
      step: One of `steps`.

    Raises:
      ValueError: If files cannot be opened, which is no damage.
    """
    reason = ""
    if jax.process_index() == 0:
      reason = state_damage.of(self._directory / str(step), step)
    if jax.process_count() == 1:
      return reason
    # The files of all processes are read once, by the first.
    text = np.zeros(_MAX_REASON, np.uint8)
    data = np.frombuffer(reason.encode()[:_MAX_REASON], np.uint8)
    text[: len(data)] = data
    sent = multihost_utils.broadcast_one_to_all(text)
    return bytes(sent).rstrip(b"\0").decode(errors="ignore")

  def _restore(
    self, step: int, abstract_state: PyTree
  ) -> tuple[str, Restored | None]:
    """Reads one step; returns what is wrong with it, or the state.

    Args:
      step: One of `steps`, whose digests are right.
      abstract_state: See `restore_latest`.

    Raises:
      ValueError: If names or shapes differ.
    """
    if state_digests.exists(self._directory / str(step)):
      # What fails here has another reason than the files.
      return "", self._read(step, abstract_state)
    logging.warning(
      "training state %s/%d has no digests, since an earlier version wrote it:"
      " its numbers cannot be checked", self._directory, step,
    )  # fmt: skip
    try:
      return "", self._read(step, abstract_state)
    except _MismatchError:
      # Older states would not fit either, and setting this one aside would hide
      # a state that is whole.
      raise
    except _OF_DAMAGED_FILES as error:
      if isinstance(error, OSError) and error.errno not in state_damage.ERRORS:
        raise state_damage.unreadable(
          self._directory / str(step), error
        ) from error
      return f"{type(error).__name__}: {error}", None

  def _read(self, step: int, abstract_state: PyTree) -> Restored:
    """Reads one step into a pytree like `abstract_state`."""
    wanted = {
      k: state_leaves.abstract(x)
      for k, x in tree_names.flat_tree(abstract_state).items()
    }
    saved = dict(self._manager.item_metadata(step)["state"])
    tree_names.check_same(
      {name: tuple(x.shape) for name, x in wanted.items()},
      {name: tuple(x.shape) for name, x in saved.items()},
      what=f"arrays of training state {self._directory}/{step}",
      error=_MismatchError,
    )
    try:
      orbax_local.check_pieces(saved)
    except ValueError as error:
      raise _MismatchError(
        f"training state {self._directory}/{step} is not one of ours ({error});"
        " restore it from a backup, or move it away"
      ) from error
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(wanted), meta=ocp.args.JsonRestore()
      ),
    )
    return Restored(
      step=step,
      state=state_leaves.unflatten_like(abstract_state, restored["state"]),
      iterator_state=_decode_iterator(restored["meta"]["iterator"]),
    )

  def _set_aside(self, broken: list[int]) -> None:
    """Renames unreadable states, so that their steps can be saved again."""
    if not broken:
      return
    self._manager.close()
    # All processes share the folder, and only one may rename in it.
    if jax.process_index() == 0:
      for step in broken:
        target = self._directory / f"broken-{step}"
        shutil.rmtree(target, ignore_errors=True)
        (self._directory / str(step)).rename(target)
    self._manager = self._open()


class _MismatchError(ValueError):
  """The state on disk is whole, but of another architecture."""


def _encode_iterator(state: IteratorState) -> Json:
  """Wraps an iterator state so that JSON can hold it."""
  if isinstance(state, bytes):
    return {"bytes": base64.b64encode(state).decode("ascii")}
  return {"json": state}


def _decode_iterator(state: Json) -> IteratorState:
  """Returns the iterator state that `_encode_iterator` wrapped."""
  if "bytes" in state:
    return base64.b64decode(state["bytes"])
  return state["json"]
