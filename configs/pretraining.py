"""Stage 0, pretraining of the dense bidirectional model of the small world.

  python -m videomla_jax.train --config=configs/pretraining.py:small \
    --workdir=runs/pretraining

It plays Wan2.1's part: source of the conversion, real score and critic.
`wan_1p3b` continues the training of a converted release instead.

The small one starts from the shipped teacher-forced dense model and gives half
of the clips a noise level per frame: from random weights, with one level per
clip, it learns digits but no motion (docs/training.md).

`small`: 0.10 s a step on two free CPU cores. `wan_1p3b`: one clip of 81 frames
at 480 x 832 per GPU: 15 GB per device (compiled for 8 B200); 1.23 PFLOP a clip,
1.4 s at 40 % of a B200's peak (`benchmark.py:suite=training`; counted and
computed, never run). `world`: the colour world, whose networks learn from
single frames first, in a run with `world,images` that starts from random
weights (docs/colour_world.md).

Arguments: `small`, `world` or `wan_1p3b`, `init=DIR` (`init=` starts a small
one from random weights), `vae=DIR` and `images` (of `world`), `seed=N`,
`steps=N`, `data=N` (devices along the data axis), `videos=N` (samples each
time, 0 for none), `runlocal` (seconds, for tests).
"""

import common

SIZES = {
  "small": dict(
    steps=10_000,
    networks=dict(model="shipped:small_dense"),
    diffusion=dict(frame_levels=0.5),
    optim=dict(learning_rate=1.5e-3),
  ),
  "world": dict(
    steps=20_000,
    networks=dict(model="runs/images/model"),
    diffusion=dict(frame_levels=0.5),
  ),
  "wan_1p3b": dict(steps=10_000, networks=dict(model="models/wan_1p3b/dit")),
}

# What changes where single frames are the clips. They are cheap to encode and
# show as many scenes as there are, where a clip shows one.
_IMAGES = dict(
  networks=dict(model=""),
  data=dict(clip_frames=1, num_frames=1, num_clips=100_000, batch_size=64),
  diffusion=dict(frame_levels=0.0),
  optim=dict(learning_rate=6e-3),
)


def get_config(arg: str | None = None) -> common.Config:
  """Returns the config of one variant.

  Args:
    arg: Size and other arguments, separated by commas; see above.

  Raises:
    ValueError: If one of them is unknown, or has no effect.
  """
  chosen, config = common.training(
    arg, stage="pretraining", sizes=SIZES, init="default", images=False
  )
  if chosen["images"] and chosen["size"] != "world":
    raise ValueError(
      "config argument images has no effect with size="
      f"{chosen['size']!r}; use world,images."
    )
  common.whole_clips(config)
  # Chance that the frames of a clip have levels of their own.
  config.diffusion.frame_levels = 0.0
  common.change(config, SIZES[chosen["size"]])
  if chosen["images"]:
    common.change(config, _IMAGES)
  if chosen["init"] != "default":
    config.networks.model = chosen["init"]
  common.finish(config, chosen)
  return config
