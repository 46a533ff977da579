"""Measures the ranks that attention layers occupy, and draws them.

  python -m videomla_jax.analyze --config=configs/analyze.py \
    --config.checkpoints="shipped:small_dense; shipped:small_latent"

Nothing is loaded as a whole: a network of 1.3B needs little more than the
memory of one layer.
"""

import ml_collections

import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; there are no variants.

  Args:
    arg: Must be empty.

  Raises:
    ValueError: If there is an argument.
  """
  config = common.without_variants(arg)
  # Networks, separated by semicolons.
  config.checkpoints = "shipped:small_dense; shipped:small_latent"
  config.select = ""  # network in a training checkpoint (generator_ema)
  # Heads of a DiT in a file whose shapes do not tell them.
  config.num_heads = common.unused(int)
  config.activations = ""  # a file of `calibrate`: real inputs of all layers
  config.energy = 0.99  # that the effective rank holds
  config.ranks = ()  # () is E / 24, E / 12, E / 8, E / 6 and E / 3
  config.formats = "svg; png"  # of figures; "" draws none
  config.output = "out/analysis"
  return config
