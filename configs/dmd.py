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

Arguments: `small` or `wan_1p3b`, `kind=latent` or `dense`, `init=DIR` (model of
stage 2), `real=DIR` (frozen real score), `critic=DIR` (the critic's start),
`frames=N` (latent frames of a rollout), `stream=N` (streaming long tuning:
videos go on from step to step up to N latent frames), `seed=N`, `steps=N`,
`local=N`, `data=N`, `runlocal`, as in teacher_forcing.py.
"""

import common


def get_config(arg=None):
  """Returns the config of one variant."""
  arg, config = common.training(
    arg,
    stage="dmd",
    # Causal-Forcing's README: at most about 1,000 student updates at batch 64.
    steps=dict(small=400, wan_1p3b=1000),
    init="runs/consistency/model",
    real="",
    critic="",
    frames=0,
    stream=0,
  )
  small = arg["size"] == "small"
  score = "runs/pretraining/model" if small else "models/wan_1p3b/dit"
  config.networks.update(
    model=arg["init"],
    real=arg["real"] or score,
    critic=arg["critic"] or score,
  )
  config.diffusion.update(
    timesteps=(1000, 750, 500, 250),
    # Of the real score; the reference's 3.0 is added to the conditional. More
    # makes the small world's digits too bright.
    guidance=2.0 if small else 4.0,
  )
  config.optim.update(
    critic_updates=5,  # dfake_gen_update_ratio
    critic_learning_rate=4e-7,
    ema_decay=0.99,  # from the first step (paper)
    ema_warmup=False,
  )
  if small:
    config.optim.update(
      learning_rate=5e-5, critic_learning_rate=1e-4, b1=0.0, b2=0.99
    )
    # Words have no gradient here, so nothing may shrink them.
    config.optim.weight_decay = 0.0
    config.data.prompt_dropout = 0.0
    config.samples.every = 250
    config.checkpoint.every = 100
    config.log.every = 10
  config.rollout = dict(
    num_frames=arg["frames"] or config.data.num_frames,
    # Videos go on from step to step up to this length (LongLive: 240); 0: not.
    stream_frames=arg["stream"],
  )
  if arg["runlocal"]:
    common.run_locally(config)
    config.optim.critic_updates = 2
    config.rollout.num_frames = config.data.num_frames
  return config
