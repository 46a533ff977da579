"""Trains one stage: checks, networks, sharded state, loop, model.

  python -m videomla_jax.train --config=configs/teacher_forcing.py:small \
    --workdir=runs/teacher_forcing

Stopping and starting the same command continues where it stopped, exactly:
parameters, averages, optimiser, data order and noise are those of a run that
never stopped, also on another mesh (up to rounding). SIGTERM and Ctrl-C save
first. The averaged model is written to WORKDIR/model, where the next stage
starts.

  WORKDIR/checkpoints   states       WORKDIR/metrics.jsonl   and TensorBoard
  WORKDIR/samples       pictures     WORKDIR/skipped         batches left out
"""

import dataclasses
import json
import os
import pathlib
import sys

from absl import flags
from absl import logging
import jax
import ml_collections

from videomla_jax import shapes
from videomla_jax import sharding
from videomla_jax.autoencoding import run as vae_run
from videomla_jax.chain import run as chain_run
from videomla_jax.chain import settings as chain_settings
from videomla_jax.costs import attention_choice
from videomla_jax.data import batching
from videomla_jax.runtime import cli
from videomla_jax.runtime import distributed
from videomla_jax.storage import model_folder
from videomla_jax.storage import output_folder
from videomla_jax.storage import train_states
from videomla_jax.training import batches as batches_lib
from videomla_jax.training import inputs
from videomla_jax.training import interrupts
from videomla_jax.training import loop
from videomla_jax.training import networks
from videomla_jax.training import optimiser
from videomla_jax.training import origins
from videomla_jax.training import profile as profile_lib
from videomla_jax.training import resumption
from videomla_jax.training import samples
from videomla_jax.training import settings as settings_lib
from videomla_jax.training import unused
from videomla_jax.training.stages import stage as stage_lib
from videomla_jax.training.stages import table

_PROFILE = flags.DEFINE_string(
  "profile", "", "Steps FIRST:LAST to trace into WORKDIR/profile."
)

_EVERY = ("log", "eval", "checkpoint", "samples")  # groups with such a field


def check(stage: stage_lib.Stage, settings: settings_lib.Training) -> None:
  """Refuses what cannot be trained, before anything is loaded or compiled.

  Args:
    stage: The stage.
    settings: Settings of the stage.

  Raises:
    ValueError: With the field, the rule and the way out.
  """
  stage.check(settings)
  unused.check(stage, settings)
  optimiser.check(settings.optim)
  batches_lib.check(settings.data, clips=stage.reads_clips)
  samples.check(stage, settings)
  _check_numbers(settings)
  for role, allowed in stage.starts_from.items():
    origins.check(role, settings.networks[role], allowed)
  if not settings.networks["model"]:
    networks.check_build(settings)


def _check_numbers(settings: settings_lib.Training) -> None:
  """Refuses numbers that no stage can work with.

  Args:
    settings: Settings of a stage.

  Raises:
    ValueError: With the field, the rule and the way out.
  """
  for name, every in (
    *((f"{x}.every", getattr(settings, x).every) for x in _EVERY),
    ("log.ranks_every", settings.log.ranks_every),
  ):
    if every is not None and every < 1:
      raise ValueError(
        f"{name}={every} must be at least 1; for never, use more than "
        "optim.steps."
      )
    dispatch = settings.dispatch
    if every is not None and every % dispatch:
      raise ValueError(
        f"{name}={every} must be a multiple of dispatch={dispatch}, the steps "
        f"of one call; use {-(-every // dispatch) * dispatch}, or dispatch=1."
      )
  for name, count in (
    ("optim.max_skipped", settings.optim.max_skipped),
    ("checkpoint.keep", settings.checkpoint.keep),
  ):
    if count < 1:
      raise ValueError(f"{name}={count} must be at least 1.")
  batching.check_chance("data.prompt_dropout", settings.data.prompt_dropout)
  if not 0 < settings.diffusion.shift < float("inf"):
    raise ValueError(
      f"diffusion.shift={settings.diffusion.shift} must be positive and finite;"
      " Wan's is 5."
    )


def load_networks(
  stage: stage_lib.Stage, settings: settings_lib.Training
) -> stage_lib.Networks:
  """Loads the networks of a stage, by role, onto the default device.

  Args:
    stage: The stage.
    settings: Settings of the stage.

  Raises:
    ValueError: If one is damaged or of another architecture.
  """
  loaded = {}
  for role in stage.starts_from:
    path = settings.networks[role]
    loaded[role] = (
      networks.load(path, settings, frozen=role not in stage.trained)
      if path
      else networks.build(settings)
    )
  loaded["model"] = networks.prepare(loaded["model"], settings)
  networks.check_together(loaded, settings.data, scores=stage.scores)
  return loaded


def init_state(
  stage: stage_lib.Stage,
  settings: settings_lib.Training,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[stage_lib.State, stage_lib.Networks]:
  """Returns state and frozen networks of a stage before its first step.

  Args:
    stage: The stage.
    settings: Settings of the stage.
    mesh: The devices; a single one by default.

  Returns:
    Training state and frozen networks, sharded.

  Raises:
    ValueError: If networks and devices do not fit.
  """
  mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
  # Networks are loaded into host memory: no device ever holds a whole one.
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    loaded = load_networks(stage, settings)
  _check_mesh(loaded, settings, mesh)
  # Moments and averages are made where their parameters lie.
  placed = jax.device_put(loaded, sharding.shardings(loaded, mesh))
  state = sharding.create(
    lambda networks: stage.init(networks, settings), placed, mesh=mesh
  )
  return state, stage.frozen(placed)


def _check_mesh(
  loaded: stage_lib.Networks,
  settings: settings_lib.Training,
  mesh: jax.sharding.Mesh,
) -> None:
  """Refuses devices that batch, tokens or heads cannot be split over.

  Args:
    loaded: The networks of the stage by role.
    settings: Settings of the stage.
    mesh: The devices.

  Raises:
    ValueError: If a number is no multiple of the devices that share it.
  """
  sharding.check_batch(
    settings.data.batch_size, mesh, microbatches=settings.optim.accumulate
  )
  # The sequence axis splits the tokens of a frame, the tensor axis heads.
  for model in loaded.values():
    network = inputs.dit(model).config
    rows, columns, _ = settings.data.latent_shape
    tokens = rows * columns // network.patch**2
    sharding.check_tokens(tokens, network.attention.num_heads, mesh)


def train(
  config: ml_collections.ConfigDict, workdir: str, profile: str = ""
) -> None:
  """Runs or continues one training run, or all of them one after the other.

  Args:
    config: Config of any stage or of the whole way, see configs/.
    workdir: Folder of checkpoints, metrics and the finished model.
    profile: Steps to trace, see the flag.

  Raises:
    ValueError: If the config or the folder cannot work.
  """
  if config.get("stage") == chain_settings.STAGE:
    _train_all(config, workdir, profile)
    return
  stage, settings = table.read(config)
  check(stage, settings)
  # A process that fails leaves the others waiting, so they join only when the
  # config is known to be right.
  distributed.initialize()
  mesh = sharding.make_mesh(**dataclasses.asdict(settings.mesh))
  # Checked here, too: tokens and heads are known after loading the networks.
  sharding.check_batch(
    settings.data.batch_size, mesh, microbatches=settings.optim.accumulate
  )
  # The folder is made when nothing of the config is left to refuse.
  root = pathlib.Path(workdir)
  output_folder.check(root)
  trace = profile_lib.Profile(root, profile)
  # What lies beside states and models is the config as the user gave it.
  record = json.loads(config.to_json())
  model_folder.check_replaceable(root / "model")
  logging.info("config: %s", config.to_json())
  batches = batches_lib.loader(
    settings.data,
    "train",
    batch_size=stage.examples_per_step(settings),
    seed=settings.seed,
    clips=stage.reads_clips,
  )
  stored = record | {resumption.IDENTITY: resumption.identity(stage, settings)}
  with interrupts.exclusive(root):
    with train_states.TrainCheckpoints(
      root / "checkpoints",
      keep=settings.checkpoint.keep,
      save_every=settings.checkpoint.every,
    ) as checkpoints:
      unread = unused.keys(stage, settings)
      resumption.check(checkpoints, stored, workdir=workdir, unread=unread)
      state, frozen = init_state(stage, settings, mesh)
      attention = attention_of(stage, settings, state, mesh)
      for line in attention_choice.lines(attention):
        logging.info("%s", line)
      # A restored state replaces the new one at once: two do not fit in memory.
      state = _resume(checkpoints, state, batches)
      run = loop.Run(
        stage=stage,
        settings=settings,
        record=stored,
        root=root,
        frozen=frozen,
        mesh=mesh,
        checkpoints=checkpoints,
        profile=trace,
      )
      state = run(state, batches)
    # Whoever samples the model must know whether it needs guidance.
    _hand_on(
      root,
      state,
      training=record,
      distilled=stage.distilled,
      attention=attention,
    )


def _train_all(
  config: ml_collections.ConfigDict, workdir: str, profile: str
) -> None:
  """Trains a VAE and all stages within a time.

  Args:
    config: Config of the whole way, `configs/world.py`.
    workdir: Folder of all parts.
    profile: Must be empty: parts have steps of their own.

  Raises:
    ValueError: If the config or the folder cannot work.
  """
  if profile:
    raise ValueError(
      f"--profile={profile} is of one stage; trace one that has its own config."
    )
  chain_run.check_alone(os.environ)
  settings, parts = chain_settings.read(config)
  chain_run.check_vae(settings)
  for name, part in parts.items():
    if name != "vae":
      table.read(part)  # What it starts from is not there yet.
  root = pathlib.Path(workdir)
  output_folder.check(root)
  model_folder.check_replaceable(root / chain_run.MODEL)
  train_of: dict[str, chain_run.Train] = dict.fromkeys(parts, train)
  train_of["vae"] = _train_vae
  with interrupts.exclusive(root):
    model = chain_run.Chain(
      settings=settings, parts=parts, root=root, train=train_of
    )()
  print(f"{model}: the student and its VAE", flush=True)


def _train_vae(config: ml_collections.ConfigDict, workdir: str) -> object:
  return vae_run.open_run(config, workdir)()


def attention_of(
  stage: stage_lib.Stage,
  settings: settings_lib.Training,
  state: stage_lib.State,
  mesh: jax.sharding.Mesh,
) -> attention_choice.Choices:
  """Says which attention the trained network takes for its gradient.

  Args:
    stage: The stage.
    settings: Settings of the stage.
    state: Its state, for the config of the network.
    mesh: The devices.
  """
  config = inputs.dit(state.ema).config
  rows, columns, _ = settings.data.latent_shape
  chunk = settings.data.num_frames
  history = 0
  if stage.causal:
    chunk = settings.window.chunk_frames
    history = settings.window.slots(settings.data.num_frames)
  with jax.set_mesh(mesh):
    return attention_choice.of(
      config,
      rows=settings.data.batch_size,
      tokens=shapes.token_grid(rows, columns, patch=config.patch).tokens,
      chunk_frames=chunk,
      history_frames=history,
      gradient=True,
    )


def _resume(
  checkpoints: train_states.TrainCheckpoints,
  state: stage_lib.State,
  batches: batches_lib.Batches,
) -> stage_lib.State:
  """Returns the newest saved state, or the new one if nothing was saved.

  Args:
    checkpoints: Saved states of the run.
    state: The state before the first step, sharded.
    batches: The data, which go on behind the saved state.
  """
  restored = checkpoints.restore_latest(state, agrees=resumption.disagreement)
  if restored is None:
    return state
  batches.set_state(restored.iterator_state)
  logging.info("continuing after step %d", restored.step)
  return restored.state


def _hand_on(
  root: pathlib.Path, state: stage_lib.State, **about: object
) -> None:
  """Writes the averaged model, which the next stage starts from.

  Args:
    root: Folder of the run.
    state: The last state.
    **about: JSON values that say what made the model.
  """
  # All processes take part in gathering the parts; one writes them.
  model = loop.to_host(state.ema)
  if jax.process_index() == 0:
    networks.save(
      root / "model",
      model,
      **about,
      command=" ".join(["python", "-m", "videomla_jax.train", *sys.argv[1:]]),
      steps=int(state.step),
    )


if __name__ == "__main__":
  cli.run(
    lambda config, workdir: train(config, workdir, _PROFILE.value),
    workdir=True,
  )
