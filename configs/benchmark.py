"""Cost of a rollout: does minute ten cost what second ten costs?

  python -m videomla_jax.benchmark --config=configs/benchmark.py

Arguments: `suite=rollout`, `minutes=N`, `runlocal`.
"""

import os
import sys

import ml_collections

sys.path.insert(0, os.path.dirname(__file__))
import common


def get_config(arg=None):
  """Returns the config."""
  arg = common.parse_arg(arg, suite="rollout", minutes=10, runlocal=False)
  if arg["suite"] != "rollout":
    raise ValueError(f"suite={arg['suite']!r} is unknown; use suite=rollout.")
  config = ml_collections.ConfigDict()
  config.checkpoint = "shipped:small_latent"
  config.seconds = 60.0 * arg["minutes"]
  config.batch = 4
  config.num_steps = 4  # four network calls per chunk, as a student has
  config.json = ""  # also write the figures here
  if arg["runlocal"]:
    config.seconds, config.batch, config.num_steps = 30.0, 1, 1
  return config
