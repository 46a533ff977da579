"""The whole way for the colour world, within a time, in one command.

  python -m videomla_jax.train --config=configs/world.py:all,minutes=12 \
    --workdir=runs/world

trains a VAE, encodes clips by it, trains the bidirectional model (stage 0) on
single frames and then on clips, converts it to latent attention, and trains the
student through stages 1 to 3. The same command goes on where it was stopped.
Every part is a config of its own, whose fields can be set:
`--config.dmd.optim.learning_rate=2e-5`. Folders and numbers of steps are set
when a part begins: some steps are timed, and as many are planned as fit into
its share of the time that is left.

  WORKDIR/model        the student with its VAE, for `sample` and `evaluate`
  WORKDIR/chain.json   times and numbers of steps
  WORKDIR/PART         folder of `train_vae` and of each stage

Arguments: `all`, `minutes=N`, `seed=N`, `vae=DIR` (a finished VAE, in place of
training one), `videos=N` (samples each time), `cpu` (sizes for two cores and
half an hour; without it those of one GPU, where it has not run yet), `runlocal`
(a minute, for tests).
"""

import common
import consistency
import dmd
import pretraining
import teacher_forcing
import vae
from videomla_jax.chain import settings

# What a GPU has time for, and what two CPU cores have. The first share is that
# of the VAE, then those of the stages; encoding belongs to pretraining.
_GPU = dict(
  vae_clips=16,
  vae_images=64,
  vae_frames=17,
  clips=20_000,
  images=100_000,
  images_batch=256,
  batch=64,
  shares=(0.25, 0.15, 0.2, 0.15, 0.1, 0.15),
)
_CPU = dict(
  vae_clips=2,
  vae_images=16,
  vae_frames=9,
  clips=200,
  images=20_000,
  images_batch=64,
  batch=4,
  shares=(0.5, 0.17, 0.12, 0.09, 0.05, 0.07),
)


def get_config(arg: str | None = None) -> common.Config:
  """Returns the config of all parts.

  Args:
    arg: `all` and other arguments, separated by commas; see above.

  Raises:
    ValueError: If one of them is unknown.
  """
  arg = common.parse_arg(
    arg,
    variant="all",
    minutes=12.0,
    seed=0,
    vae="",
    videos=4,
    cpu=False,
    runlocal=False,
  )
  if arg["variant"] != "all":
    raise ValueError(
      f"config argument variant={arg['variant']!r} is unknown; use all."
    )
  sizes = _CPU if arg["cpu"] or arg["runlocal"] else _GPU
  config = common.Config()
  config.stage = "chain"
  config.minutes = arg["minutes"]
  # Of the time; only proportions matter.
  config.shares = dict(zip(settings.PARTS, sizes["shares"], strict=True))
  config.finished_vae = arg["vae"]  # folder; empty trains one
  config.dispatch = 0  # steps of a call; 0 is 1 on a CPU and 10 elsewhere
  config.probe = 8  # calls that are timed before a part begins
  config.least_steps = 20  # of a part
  end = f",seed={arg['seed']}" + (",runlocal" if arg["runlocal"] else "")
  config.vae = vae.get_config("world" + end)
  config.vae.images.batch_size = sizes["vae_images"]
  config.vae.data.update(
    batch_size=sizes["vae_clips"], num_frames=sizes["vae_frames"]
  )
  end = f"world,videos={arg['videos']}" + end
  config.images = pretraining.get_config(end + ",images")
  for name, file in (
    ("pretraining", pretraining),
    ("teacher_forcing", teacher_forcing),
    ("consistency", consistency),
    ("dmd", dmd),
  ):
    part = file.get_config(end)
    if not arg["runlocal"]:
      part.data.update(num_clips=sizes["clips"], batch_size=sizes["batch"])
    config[name] = part
  if not arg["runlocal"]:
    config.images.data.update(
      num_clips=sizes["images"], batch_size=sizes["images_batch"]
    )
  else:
    config.least_steps = 4
    config.vae.network.channels = 16  # which the stages need
    config.vae.data.num_frames = 5
    config.vae.images.batch_size = 2
  if arg["vae"]:
    # There is nothing to set of what is not trained.
    del config.vae
    config.shares.vae = common.unused(float)
  return config
