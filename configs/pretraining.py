"""Stage 0, pretraining of the dense bidirectional model of the small world.

  python -m videomla_jax.train --config=configs/pretraining.py:small \
    --workdir=runs/pretraining

It plays Wan2.1's part: source of the conversion, real score and critic.
`wan_1p3b` continues the training of a converted release instead.

Arguments: `small` or `wan_1p3b`, `seed=N`, `steps=N`, `data=N` (devices along
the data axis), `runlocal` (seconds, for tests).
"""

import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
import common


def get_config(arg=None):
  """Returns the config of one variant."""
  arg, config = common.training(
    arg, stage="pretraining", steps=dict(small=14_000, wan_1p3b=10_000)
  )
  config.model.kind = "dense"
  # Chance that the frames of a clip have levels of their own.
  config.diffusion.frame_levels = 0.0
  small = arg["size"] == "small"
  config.networks.model = "" if small else "models/wan_1p3b/dit"
  if arg["runlocal"]:
    common.run_locally(config)
  return config
