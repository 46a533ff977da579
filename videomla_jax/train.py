"""Trains one stage: checks, networks, sharded state, loop, model.

  python -m videomla_jax.train --config=configs/teacher_forcing.py:small \
    --workdir=runs/teacher_forcing

Stopping and starting the same command continues where it stopped, exactly:
parameters, averages, optimiser, data order and noise are those of a run that
never stopped, also on another mesh (up to rounding). SIGTERM saves first. The
averaged model is written to WORKDIR/model, where the next stage starts.

  WORKDIR/checkpoints   states       WORKDIR/metrics.jsonl   and TensorBoard
  WORKDIR/samples       pictures     WORKDIR/skipped         batches left out
"""

import json
import pathlib
import sys
from typing import Any

from absl import flags
from absl import logging
import jax

from videomla_jax import sharding
from videomla_jax.runtime import cli
from videomla_jax.runtime import distributed
from videomla_jax.storage import output_folder
from videomla_jax.storage import train_states
from videomla_jax.training import batches as batches_lib
from videomla_jax.training import inputs
from videomla_jax.training import loop
from videomla_jax.training import networks
from videomla_jax.training import optim
from videomla_jax.training import samples
from videomla_jax.training import workdir as workdir_lib
from videomla_jax.training.stages import table

_PROFILE = flags.DEFINE_string(
  "profile", "", "Steps FIRST:LAST to trace into WORKDIR/profile."
)


def check_config(config: Any) -> None:
  """Refuses what cannot be trained, before anything is loaded or compiled.

  Args:
    config: Of any stage.

  Raises:
    ValueError: With the field, the rule and the way out.
  """
  stage = table.get(config)
  stage.check(config)
  optim.check(config.optim)
  batches_lib.check(config)
  samples.check(config)
  for name in ("log", "eval", "checkpoint", "samples"):
    if config[name].every < 1:
      raise ValueError(
        f"{name}.every={config[name].every} must be at least 1; for never, "
        "use more than optim.steps."
      )
  if config.optim.max_skipped < 1:
    raise ValueError(
      f"optim.max_skipped={config.optim.max_skipped} must be at least 1."
    )
  for role, allowed in stage.STARTS_FROM.items():
    networks.check_origin(role, config.networks[role], allowed)
  if not config.networks.model:
    networks.check_build(config)


def load_networks(config: Any) -> dict[str, Any]:
  """The networks of a stage by their role, on the default device.

  Raises:
    ValueError: If one is damaged or of another architecture.
  """
  made, trained = {}, table.trained(config)
  for role in table.get(config).STARTS_FROM:
    path = config.networks[role]
    made[role] = (
      networks.load(path, config, frozen=role not in trained)
      if path
      else networks.build(config)
    )
  made["model"] = networks.prepare(made["model"], config)
  table.check_networks(made, config)
  return made


def init_state(config: Any, mesh: jax.sharding.Mesh | None = None) -> Any:
  """State and frozen networks of a stage before its first step.

  Args:
    config: Of any stage.
    mesh: The devices; one by default.

  Returns:
    Training state and frozen networks, sharded.
  """
  mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
  # In host memory, so that no device ever holds a whole network.
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    loaded = load_networks(config)
  _check_mesh(loaded, config, mesh)
  placed = jax.device_put(loaded, sharding.shardings(loaded, mesh))
  state = sharding.create(
    lambda networks: table.init(networks, config), placed, mesh=mesh
  )
  frozen = {
    role: placed[role] for role in placed if role not in table.trained(config)
  }
  return state, frozen


def _check_mesh(loaded: Any, config: Any, mesh: jax.sharding.Mesh) -> None:
  sharding.check_batch(
    config.data.batch_size, mesh, parts=config.optim.accumulate
  )
  for model in loaded.values():
    network = inputs.dit(model).config
    rows, columns, _ = config.data.latent_shape
    tokens = rows * columns // network.patch**2
    sharding.check_tokens(tokens, network.attention.num_heads, mesh)


def train(config: Any, workdir: str, profile: str = "") -> None:
  """Runs or continues one training run.

  Args:
    config: Of any stage, see configs/.
    workdir: Folder of checkpoints, metrics and the finished model.
    profile: Steps to trace, see the flag.

  Raises:
    ValueError: If the config or the folder cannot work.
  """
  check_config(config)
  distributed.initialize()
  mesh = sharding.make_mesh(**config.mesh)
  sharding.check_batch(
    config.data.batch_size, mesh, parts=config.optim.accumulate
  )
  root = pathlib.Path(workdir)
  output_folder.check(root)
  trace = loop.Profile(root, profile)
  logging.info("config: %s", config.to_json())
  batches = iter(batches_lib.loader(config, "train"))
  with workdir_lib.exclusive(root):
    _run(config, root, mesh, trace, batches)


def _run(
  config: Any,
  root: pathlib.Path,
  mesh: jax.sharding.Mesh,
  trace: loop.Profile,
  batches: Any,
) -> None:
  """Trains in a folder that is this run's alone, and hands the model on."""
  state, frozen = init_state(config, mesh)
  with train_states.TrainCheckpoints(
    root / "checkpoints",
    keep=config.checkpoint.keep,
    save_every=config.checkpoint.every,
  ) as checkpoints:
    restored = checkpoints.restore_latest(state)
    if restored is not None:
      state = restored.state
      batches.set_state(restored.iterator_state)
      logging.info("continuing after step %d", restored.step)
    run = loop.Run(config, root, frozen, mesh, checkpoints, trace)
    state = run(state, batches)
  model = loop.to_host(state.ema)
  if jax.process_index() == 0:
    networks.save(
      root / "model",
      model,
      training=json.loads(config.to_json()),
      command=" ".join(["python", "-m", "videomla_jax.train", *sys.argv[1:]]),
      steps=int(state.step),
    )


if __name__ == "__main__":
  cli.run(
    lambda config, workdir: train(config, workdir, _PROFILE.value),
    workdir=True,
  )
