"""Stage 3, distribution matching distillation on the student's own rollouts.

  python -m videomla_jax.train --config=configs/dmd.py:small \
    --workdir=runs/dmd

A step is one update of the student and five of the critic, each on a batch of
prompts of its own.

`wan_1p3b` is one clip of 81 frames at 480 x 832 per GPU, 64 GPUs in the paper.
Compiled for 8 and 64 B200, never run: 16 GB per device, 20 GB with a 14B real
score (docs/training.md). 10.7 PFLOP a clip, 12 s a step at 40 % of a B200's
peak (`benchmark.py:suite=training`; counted and computed). `small`: 0.9 s a
step on two CPU cores.

Arguments: `small`, `world` or `wan_1p3b`, `kind=latent` or `dense`, `init=DIR`
(model of stage 2), `vae=DIR` (of `world`), `real=DIR` (frozen real score),
`critic=DIR` (the critic's start), `frames=N` (latent frames of a rollout),
`stream=N` (streaming long tuning: videos go on from step to step up to N latent
frames), `seed=N`, `steps=N`, `local=N`, `data=N`, `videos=N`, `runlocal`, as in
teacher_forcing.py.
"""

import common

SIZES = {
  "small": dict(
    steps=400,
    score="runs/pretraining/model",
    diffusion=dict(guidance=2.0),  # more makes the digits too bright
    optim=dict(
      learning_rate=5e-5,
      b1=0.0,
      weight_decay=0.0,  # words have no gradient: nothing may shrink them
      critic_learning_rate=1e-4,
    ),
    data=dict(prompt_dropout=0.0),
    samples=dict(every=250),
    checkpoint=dict(every=100),
    log=dict(every=10),
  ),
  "world": dict(
    steps=400,
    score="runs/pretraining/model",
    diffusion=dict(guidance=2.0),
    optim=dict(
      learning_rate=5e-5,
      b1=0.0,
      weight_decay=0.0,
      critic_learning_rate=1e-4,
    ),
    data=dict(prompt_dropout=0.0),
    samples=dict(every=200),
    checkpoint=dict(every=100),
    log=dict(every=10),
  ),
  "wan_1p3b": dict(
    # Causal-Forcing's README: at most about 1,000 student updates at batch 64.
    steps=1000,
    score="models/wan_1p3b/dit",
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
    stage="dmd",
    sizes=SIZES,
    kind="latent",
    local=6,
    init="runs/consistency/model",
    real="",
    critic="",
    frames=0,
    stream=0,
  )
  size = SIZES[chosen["size"]]
  config.networks.update(
    model=chosen["init"],
    real=chosen["real"] or size["score"],
    critic=chosen["critic"] or size["score"],
  )
  config.diffusion.update(
    timesteps=(1000, 750, 500, 250),
    # Of the real score; the reference adds 3.0 to the conditional.
    guidance=4.0,
  )
  config.optim.update(
    critic_updates=5,  # dfake_gen_update_ratio
    critic_learning_rate=4e-7,
    ema_decay=0.99,  # from the first step (paper)
    ema_warmup=False,
  )
  common.change(config, size)
  config.rollout = dict(
    num_frames=chosen["frames"] or config.data.num_frames,
    # Videos go on from step to step up to this length (LongLive: 240); 0: not.
    stream_frames=chosen["stream"],
  )
  common.distilled(config)
  # Held-out clips have nothing to compare a rollout with.
  config.eval = dict(every=common.unused(int), batches=0)
  common.finish(config, chosen)
  if chosen["runlocal"]:
    config.optim.critic_updates = 2
    config.rollout.num_frames = config.data.num_frames
  return config
