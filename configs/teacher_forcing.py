"""Stage 1, teacher forcing, for the small world of moving digits.

  python -m videomla_jax.train --config=configs/teacher_forcing.py:latent \
    --workdir=runs/latent

Measured on one of two loaded x86 cores: 0.2 to 0.3 s a step, 70 minutes in all,
held-out loss 0.039 (latent) and 0.024 (dense); quality in docs/small_world.md.

Variants: `latent` or `dense`, `d_c=N`, `seed=N`, `steps=N`, `runlocal` (a few
seconds, for tests).
"""

import os
import sys

import ml_collections

sys.path.insert(0, os.path.dirname(__file__))
import common


def get_config(arg=None):
  """Returns the config of one variant."""
  arg = common.parse_arg(
    arg, kind="latent", d_c=0, seed=0, steps=14_000, runlocal=False
  )
  config = ml_collections.ConfigDict()
  config.stage = "teacher_forcing"
  config.seed = arg["seed"]
  config.data = dict(
    root="data",  # TFDS folder, built at first use
    num_clips=20_000,
    clip_frames=24,  # frames of a stored clip
    num_frames=12,  # frames of a training window: 4 chunks
    batch_size=8,  # clips per step
    prompt_dropout=0.1,  # teaches the unconditional model for guidance
    word_dropout=0.05,  # teaches prompts that leave something open
  )
  config.model = dict(
    size="small",
    kind=arg["kind"],
    d_c=arg["d_c"],  # content latent; 0 is the paper's share of the width, 16
  )
  config.window = dict(chunk_frames=3, sink_frames=1, local_frames=6)
  config.diffusion = dict(
    shift=2.0,  # 9 tokens a frame need less noise than Wan's 1560
    loss_weight="none",  # "bell" is spec/diffusion.md section 6
    first_frame_every=4,  # every 4th step the first chunk is one given frame
  )
  config.optim = dict(
    steps=arg["steps"],
    learning_rate=2e-3,
    warmup_steps=50,
    final_fraction=0.05,  # of the learning rate, cosine
    b1=0.9,
    b2=0.99,
    weight_decay=0.01,
    clip_norm=1.0,
    ema_decay=0.999,  # reached after a warm-up of its own
  )
  config.checkpoint = dict(every=1000, keep=2)
  config.log = dict(every=50)
  config.eval = dict(every=1000, batches=8)
  if arg["runlocal"]:
    config.data.update(num_clips=64, batch_size=2, num_frames=6, clip_frames=6)
    config.optim.update(steps=min(arg["steps"], 6), warmup_steps=2)
    config.checkpoint.update(every=2)
    config.eval.update(every=3, batches=1)
    config.log.update(every=1)
  return config
