"""Stage 1, teacher forcing: a causal model that sees clean history.

  python -m videomla_jax.train --config=configs/teacher_forcing.py:small \
    --workdir=runs/teacher_forcing

`small`: 0.10 s a step on two free CPU cores. `wan_1p3b`: one clip of 81 frames
at 480 x 832 per GPU: 24 GB per device (compiled for 8 B200); 1.14 PFLOP a clip,
1.3 s at 40 % of a B200's peak (`benchmark.py:suite=training`; counted and
computed, never run).

Arguments: `small`, `world` or `wan_1p3b`, `kind=latent` or `dense`, `d_c=N` and
`d_rope=N` (content latent, and the split of a head: its positional channels; a
converted model must have them), `init=DIR` (a converted model; `init=` starts
a small one from random weights), `vae=DIR` (of `world`), `seed=N`, `steps=N`,
`local=N` (window, latent frames), `data=N` (devices along the data axis),
`videos=N` (samples each time, 0 for none), `runlocal` (seconds, for tests).
"""

import common

SIZES = {
  "small": dict(
    steps=14_000,
    networks=dict(model=""),
    diffusion=dict(loss_weight="none"),
  ),
  "world": dict(
    steps=10_000,
    networks=dict(model="runs/converted"),  # convert --to=latent made it
    diffusion=dict(loss_weight="none"),
  ),
  "wan_1p3b": dict(
    # Causal-Forcing's README: at least 2,000 steps, 5,000 to 10,000 are better;
    # latent attention has more to learn.
    steps=10_000,
    networks=dict(model="models/videomla_1p3b/dit"),
  ),
}


def get_config(arg: str | None = None) -> common.Config:
  """Returns the config of one variant.

  Args:
    arg: Size and other arguments, separated by commas; see above.

  Raises:
    ValueError: If one of them is unknown.
  """
  chosen, config = common.training(
    arg,
    stage="teacher_forcing",
    sizes=SIZES,
    kind="latent",
    local=6,
    d_c=0,
    d_rope=0,
    init="default",
  )
  config.diffusion.update(
    loss_weight="bell",  # docs/method.md, section 6.5
    first_frame_every=4,  # every 4th step the first chunk is one given frame
  )
  common.change(config, SIZES[chosen["size"]])
  if chosen["init"] != "default":
    config.networks.model = chosen["init"]
  common.finish(config, chosen)
  return config
