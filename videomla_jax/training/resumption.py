"""Whether a run may go on from the states in its folder.

Every state holds the config that it was trained with. What decides the numbers
of a run must be as it was; what only decides how long it takes, what is logged,
or how fast it learns may change, and is listed (docs/training.md, "Resuming").
"""

from collections.abc import Collection
from collections.abc import Mapping
import hashlib
import pathlib
from typing import Any

from absl import logging
import jax

from videomla_jax.data import dataset
from videomla_jax.small_world import codecs
from videomla_jax.small_world import model as model_lib
from videomla_jax.storage import model_folder
from videomla_jax.storage import ordinary_files
from videomla_jax.storage import train_states
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage as stage_lib

Record = Mapping[str, Any]

# Groups and keys that may change. Everything else makes another run.
MAY_CHANGE = (
  *("log", "eval", "samples", "checkpoint", "mesh"),
  # A state already holds the trained networks. Those that are only read, and
  # data, may lie elsewhere: what is in them is compared (`identity`).
  *("networks", "data.root", "data.vae", "data.verify"),
  # A run that diverges goes on with other ones.
  *("optim.steps", "optim.schedule", "optim.warmup_steps"),
  *("optim.learning_rate", "optim.critic_learning_rate"),
  *("optim.final_fraction", "optim.clip_norm", "optim.weight_decay"),
  *("optim.max_skipped", "dispatch"),
)
IDENTITY = "identity"  # group of the stored config beside those of the user


def identity(
  stage: stage_lib.Stage, settings: settings_lib.Training
) -> dict[str, str]:
  """Returns digests of what a run reads, wherever it lies.

  Args:
    stage: The stage.
    settings: Settings of the stage.

  Raises:
    ValueError: If a folder cannot be read.
  """
  found = {}
  if isinstance(settings.data, settings_lib.PreparedClips):
    report = dataset.read_report(settings.data.root)
    found["data"] = str(report.get("identity", ""))
  if isinstance(settings.data, settings_lib.ColourWorld):
    found["vae"] = codecs.open_vae(settings.data.vae).digest
  for role, path in settings.networks.items():
    if path and role not in stage.trained:
      folder = pathlib.Path(model_lib.checkpoint_path(path))
      digests = ordinary_files.read_bytes(
        folder / model_folder.DIGESTS, limit=64 * ordinary_files.MIB
      )
      found[f"networks.{role}"] = hashlib.sha256(digests).hexdigest()
  return found


def check(
  checkpoints: train_states.TrainCheckpoints,
  record: Record,
  *,
  workdir: str,
  unread: Collection[str] = (),
  may_change: Collection[str] = MAY_CHANGE,
) -> None:
  """Compares the config with that of the newest state, if there is one.

  Keys that nothing reads are not compared: earlier versions took any value of
  them. Which they are follows from keys that are compared, or that may change.

  Args:
    checkpoints: States of the run.
    record: The present config as plain values, with the group `IDENTITY`.
    workdir: Folder of the run, for messages.
    unread: Keys that nothing reads, see `unused.keys`.
    may_change: Groups and keys that may be others than before.

  Raises:
    ValueError: If the config is that of another run; all keys are listed.
  """
  stored = checkpoints.newest_config()
  if stored is None:
    return
  before, now = _flat(stored), _flat(record)
  both = [k for k in before if k in now and k not in unread]
  changed = {k: (before[k], now[k]) for k in both}
  changed = {k: pair for k, pair in changed.items() if not _same(*pair)}
  refused = {k: x for k, x in changed.items() if not _is_of(k, may_change)}
  if refused:
    raise ValueError(
      f"workdir={workdir!r} holds a run with {_listed(refused, 0)}, and not"
      f" {_listed(refused, 1)}; start another run in another folder, or set"
      " these back."
    )
  if changed and jax.process_index() == 0:
    lines = [f"{k}: {a!r} -> {b!r}" for k, (a, b) in sorted(changed.items())]
    logging.warning("this run goes on with changes: %s", ", ".join(lines))


def disagreement(restored: train_states.Restored) -> str:
  """Says what does not fit together in a restored state, or nothing.

  Args:
    restored: A state whose pytree has a field `step`.
  """
  step = int(restored.state.step)
  if step != restored.step:
    return f"its arrays are those of step {step}"
  position = restored.iterator_state
  # Every step takes one batch, and Grain counts batches.
  taken = position.get("next_index") if isinstance(position, dict) else None
  if taken is not None and taken != restored.step:
    return f"its data are those of step {taken}"
  return ""


def _flat(record: Record, at: str = "") -> dict[str, Any]:
  """Returns the values of all groups under names with full stops."""
  flat: dict[str, Any] = {}
  for name, value in record.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f"{at}{name}.")
    else:
      flat[f"{at}{name}"] = value
  return flat


def _same(a: Any, b: Any) -> bool:
  """Compares two values of JSON, in which tuples are lists."""
  plain = lambda x: list(x) if isinstance(x, tuple) else x
  return bool(plain(a) == plain(b))


def _is_of(name: str, groups: Collection[str]) -> bool:
  return any(name == x or name.startswith(f"{x}.") for x in groups)


def _listed(changed: dict[str, tuple[Any, Any]], side: int) -> str:
  return ", ".join(f"{k}={x[side]!r}" for k, x in sorted(changed.items()))
