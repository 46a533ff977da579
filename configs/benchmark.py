"""Measures costs: of a rollout, of the attention kernels, or of training steps.

  python -m videomla_jax.benchmark --config=configs/benchmark.py
  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=kernels
  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=training

The second needs the extra `aot` and JAX_PLATFORMS=cpu, and no GPU.
Arguments: `suite=rollout|kernels|training`, `minutes=N`, `runlocal`.
"""

import importlib
from typing import Any

import ml_collections

import common
from videomla_jax.ops.latent_attention import specs
from videomla_jax.training.stages import table

# The config of a stage has the name of the stage.
STAGES = {name: importlib.import_module(name) for name in table.STAGES}
SUITES = ("rollout", "kernels", "training")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config of one suite.

  Args:
    arg: What follows the colon behind the file.

  Raises:
    ValueError: If the suite is unknown.
  """
  arguments = common.parse_arg(arg, suite="rollout", minutes=10, runlocal=False)
  suite = arguments["suite"]
  if suite not in SUITES:
    raise ValueError(f"suite={suite!r} is unknown; use one of {SUITES}.")
  make = {"rollout": _rollout, "kernels": _kernels, "training": _training}
  config = ml_collections.ConfigDict()
  config.suite = suite
  config.json = ""  # file to which the figures are written as well
  make[suite](config, arguments)
  return config


def _rollout(
  config: ml_collections.ConfigDict, arguments: dict[str, Any]
) -> None:
  """Rolls out the shipped small model."""
  config.checkpoint = "shipped:small_latent"
  config.seconds = 60.0 * arguments["minutes"]  # of video
  config.batch = 4  # videos side by side
  config.num_steps = 4  # network calls per chunk, as many as a student has
  if arguments["runlocal"]:
    config.seconds, config.batch, config.num_steps = 30.0, 1, 1


def _training(
  config: ml_collections.ConfigDict, arguments: dict[str, Any]
) -> None:
  """Counts the steps of all stages at 1.3B, latent where the student is."""
  del arguments
  config.targets = ("b200", "h100")
  config.utilisation = 0.4  # share of the peak; an assumption, nothing was run
  config.stages = {
    name: module.get_config("wan_1p3b") for name, module in STAGES.items()
  }


def _kernels(
  config: ml_collections.ConfigDict, arguments: dict[str, Any]
) -> None:
  """Compiles every real shape for every target; five minutes on two cores."""
  config.targets = ("b200", "h100")
  config.shapes = tuple(specs.SHAPES)
  if arguments["runlocal"]:
    config.targets, config.shapes = ("b200",), ("480p",)
