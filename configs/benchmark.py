"""Costs: of a rollout over its length, or of the attention kernels.

  python -m videomla_jax.benchmark --config=configs/benchmark.py
  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=kernels

The second needs the extra `aot` and JAX_PLATFORMS=cpu, and no GPU.
Arguments: `suite=rollout|kernels`, `minutes=N`, `runlocal`.
"""

import os
import sys

import ml_collections

sys.path.insert(0, os.path.dirname(__file__))
import common

SUITES = ("rollout", "kernels")


def get_config(arg=None):
  """Returns the config."""
  arg = common.parse_arg(arg, suite="rollout", minutes=10, runlocal=False)
  if arg["suite"] not in SUITES:
    raise ValueError(
      f"suite={arg['suite']!r} is unknown; use suite=rollout or suite=kernels."
    )
  config = ml_collections.ConfigDict()
  config.suite = arg["suite"]
  config.json = ""  # also write the figures here
  if config.suite == "kernels":
    return _kernels(config, arg)
  config.checkpoint = "shipped:small_latent"
  config.seconds = 60.0 * arg["minutes"]
  config.batch = 4
  config.num_steps = 4  # four network calls per chunk, as a student has
  if arg["runlocal"]:
    config.seconds, config.batch, config.num_steps = 30.0, 1, 1
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
