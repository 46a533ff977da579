"""Costs: of a rollout, of the attention kernels, or of training steps.

  python -m videomla_jax.benchmark --config=configs/benchmark.py
  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=kernels

  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=training

The second needs the extra `aot` and JAX_PLATFORMS=cpu, and no GPU.
Arguments: `suite=rollout|kernels|training`, `minutes=N`, `runlocal`.
"""

import importlib

import ml_collections

import common
from videomla_jax.training.stages import table

# The config of a stage has the name of the stage.
STAGES = {name: importlib.import_module(name) for name in table.STAGES}
SUITES = ("rollout", "kernels", "training")


def get_config(arg=None):
  """Returns the config."""
  arg = common.parse_arg(arg, suite="rollout", minutes=10, runlocal=False)
  if arg["suite"] not in SUITES:
    raise ValueError(f"suite={arg['suite']!r} is unknown; use one of {SUITES}.")
  config = ml_collections.ConfigDict()
  config.suite = arg["suite"]
  config.json = ""  # also write the figures here
  if config.suite == "kernels":
    return _kernels(config, arg)
  if config.suite == "training":
    return _training(config)
  config.checkpoint = "shipped:small_latent"
  config.seconds = 60.0 * arg["minutes"]
  config.batch = 4
  config.num_steps = 4  # four network calls per chunk, as a student has
  if arg["runlocal"]:
    config.seconds, config.batch, config.num_steps = 30.0, 1, 1
  return config


def _training(config):
  """The stages at 1.3B, latent where the student is."""
  config.targets = ("b200", "h100")
  config.utilisation = 0.4  # of the peak; an assumption, nothing was run
  config.stages = {
    name: module.get_config("wan_1p3b") for name, module in STAGES.items()
  }
  return config


def _kernels(config, arg):
  """Every real shape on every target; about five minutes on two cores."""
  config.targets = ("b200", "h100")
  config.shapes = (
    "480p",
    "720p",
    "480p_framewise",
    "480p_14b",
    "480p_first_chunk",
    "few_queries",
    # A ring in eight bits.
    "480p_int8",
    "480p_float8",
    "few_queries_int8",
    "few_queries_float8",
    # The paper's ablations.
    "480p_dc64",
    "480p_dc128",
    "480p_dc256",
    "480p_dc384",
    "480p_dc512",
    "480p_split112_16",
    "480p_split64_64",
    "480p_split32_96",
  )
  if arg["runlocal"]:
    config.targets, config.shapes = ("b200",), ("480p",)
  return config
