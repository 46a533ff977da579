"""Stage 2, consistency distillation: a student that jumps to clean latents.

  python -m videomla_jax.train --config=configs/consistency.py:small \
    --workdir=runs/consistency

`small`: 0.19 s a step on two CPU cores. `wan_1p3b`: one clip of 81 frames at
480 x 832 per GPU: 25 GB per device (compiled for 8 B200); 1.94 PFLOP a clip,
2.2 s at 40 % of a B200's peak (`benchmark.py:suite=training`; counted and
computed, never run).

Arguments: `small`, `world` or `wan_1p3b`, `kind=latent` or `dense`, `init=DIR`
(model of stage 1, student and teacher), `vae=DIR` (of `world`), `seed=N`,
`steps=N`, `local=N`, `data=N`, `videos=N`, `runlocal`, as in
teacher_forcing.py.
"""

import common

SIZES = {
  "small": dict(
    steps=3000,
    optim=dict(learning_rate=3e-4),
    # The student's text encoder must not learn the unconditional prompt.
    data=dict(prompt_dropout=0.0),
  ),
  "world": dict(
    steps=3000,
    optim=dict(learning_rate=3e-4),
    data=dict(prompt_dropout=0.0),
  ),
  # Causal-Forcing's README: at least 3,000 steps, 5,000 to 10,000 are better.
  "wan_1p3b": dict(steps=5000),
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
    stage="consistency",
    sizes=SIZES,
    kind="latent",
    local=6,
    init="runs/teacher_forcing/model",
  )
  config.networks.update(model=chosen["init"], teacher=chosen["init"])
  config.diffusion.update(
    num_levels=48,  # causal_cd_*.yaml: discrete_cd_N
    guidance=3.0,  # of the teacher, w in uncond + w (cond - uncond)
    timesteps=(1000, 750, 500, 250),  # of the student, before the warp
    first_frame_every=4,
  )
  # The average is the target network: 0.99 from the first step.
  config.optim.update(ema_decay=0.99, ema_warmup=False)
  common.change(config, SIZES[chosen["size"]])
  common.distilled(config)
  common.finish(config, chosen)
  if not config.samples.videos:
    config.diffusion.timesteps = ()  # The student learns to jump from all.
  if chosen["runlocal"]:
    config.diffusion.num_levels = 6
  return config
