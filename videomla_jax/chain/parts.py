"""The config of one part: where it starts, how many steps, how often what.

A part's own config leaves these open, since they follow from the folder of the
run and from the time that is left.
"""

import math
import pathlib

import ml_collections

CONVERTED = "converted"  # folder of the model between two parts
_SAVED, _SHOWN, _LOGGED = 4, 2, 50  # times in a part


def model(root: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the folder of the model that a part hands on."""
  return root / name / "model"


def placed(
  config: ml_collections.ConfigDict,
  name: str,
  root: pathlib.Path,
  *,
  vae: str | pathlib.Path,
) -> ml_collections.ConfigDict:
  """Returns the config of a part with the folders that it reads.

  Args:
    config: Config of the part, which stays as it is.
    name: One of `settings.PARTS`.
    root: Folder of the whole way.
    vae: Folder of the VAE of all stages.
  """
  config = config.copy_and_resolve_references()
  if name == "vae":
    return config
  config.data.root = str(root / "data")
  config.data.vae = str(vae)
  dense = str(model(root, "pretraining"))
  forced = str(model(root, "teacher_forcing"))
  config.networks = {
    "images": dict(model=""),
    "pretraining": dict(model=str(model(root, "images"))),
    "teacher_forcing": dict(model=str(root / CONVERTED)),
    "consistency": dict(model=forced, teacher=forced),
    "dmd": dict(
      model=str(model(root, "consistency")), real=dense, critic=dense
    ),
  }[name]
  return config


def with_steps(
  config: ml_collections.ConfigDict, name: str, steps: int, *, dispatch: int
) -> ml_collections.ConfigDict:
  """Returns the config of a part that makes so many steps.

  Args:
    config: Config of the part, which stays as it is.
    name: One of `settings.PARTS`.
    steps: Steps, rounded up to whole calls.
    dispatch: Steps of a call.
  """
  config = config.copy_and_resolve_references()
  whole = lambda n: dispatch * max(1, math.ceil(n / dispatch))
  steps = whole(steps)
  config.optim.steps = steps
  config.optim.warmup_steps = min(config.optim.warmup_steps, steps // 10)
  saved, shown = whole(steps / _SAVED), whole(steps / _SHOWN)
  logged = whole(steps / _LOGGED)
  if name == "vae":
    # Half of them, so that both kinds take about the same time.
    config.images.steps = whole(steps // 2)
    config.every = dict(
      log=logged, measure=saved, save=saved, dispatch=dispatch
    )
    return config
  config.dispatch = dispatch
  config.checkpoint.every, config.log.every = saved, logged
  if config.eval.every is not None:
    config.eval.every = saved
  if config.samples.every is not None:
    config.samples.every = shown
  return config


def for_timing(
  config: ml_collections.ConfigDict, name: str, calls: int, *, dispatch: int
) -> ml_collections.ConfigDict:
  """Returns the config of a part that only shows how long its steps take.

  Args:
    config: Config of the part, which stays as it is.
    name: One of `settings.PARTS`.
    calls: Calls of the programs, a multiple of four.
    dispatch: Steps of a call.
  """
  config = with_steps(config, name, calls * dispatch, dispatch=dispatch)
  steps = config.optim.steps
  if name == "vae":
    config.every.update(log=steps // 4, measure=steps, save=steps)
    config.held_out = 1
    return config
  config.log.every, config.checkpoint.every = steps // 2, steps
  config.eval.update(batches=0, every=None)
  config.samples.update(
    videos=0, every=None, seconds=None, num_steps=None, guidance=None
  )
  if name == "consistency":
    config.diffusion.timesteps = ()  # Only samples take them.
  return config


def timed_lines(name: str) -> slice:
  """Returns which of the logged lines are of steps that compiled nothing."""
  # The VAE logs four times, and compiles before the first and the third.
  return slice(1, None, 2) if name == "vae" else slice(-1, None)
