"""Trains and compares many settings of the small world's models.

  python -m videomla_jax.ablate --config=configs/ablate.py

22 settings of stage 1, 8 students that go through all three stages and 14 ways
to roll out, three seeds each; and four settings on real films if
`--config.films="a.mp4; b.mp4"` names some. Arguments, which all rows have in
common: `steps=N` of stages 1 and 2 (stage 3 makes a quarter of them),
`batch=N`, `seeds=N`, `minutes=N` after which no further row is started,
`runlocal` (seconds, for tests).
"""

import importlib

import ml_collections

import common
from videomla_jax.training.stages import table

# The config of a stage has the name of the stage.
STAGES = {name: importlib.import_module(name) for name in table.STAGES}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: Arguments, separated by commas.

  Raises:
    ValueError: If one of them is unknown.
  """
  arg = common.parse_arg(
    arg, steps=2000, batch=8, seeds=3, minutes=1e6, runlocal=False
  )
  config = ml_collections.ConfigDict()
  config.rows = ""  # a regular expression; empty takes all rows
  config.seeds = arg["seeds"]  # of every row, from 0
  steps = dict.fromkeys(("teacher_forcing", "consistency"), arg["steps"])
  # A step of it is six updates, each with a rollout.
  steps["dmd"] = max(1, arg["steps"] // 4)
  config.stages = {
    name: STAGES[name].get_config(f"small,init=,videos=0,steps={number}")
    for name, number in steps.items()
  }
  for stage in config.stages.values():
    stage.data.batch_size = arg["batch"]  # clips of an update
    stage.optim.warmup_steps = min(50, stage.optim.steps // 4)
    # One program serves all steps; nothing here continues a picture.
    if "first_frame_every" in stage.diffusion:
      stage.diffusion.first_frame_every = 0
  config.dense = "shipped:small_bidirectional"  # is converted
  config.latent = "shipped:small_latent"  # of stage 1, is rolled out
  config.student = "shipped:small_student"  # of stage 3, is rolled out
  config.together = 3  # models of one program: more on a GPU, such as 60
  config.dispatch = 50  # steps of one call of it
  config.held_out = 16  # batches of held-out clips, for the loss
  config.videos_per_prompt = 2  # of the ten held-out prompts; 0 for none
  config.seconds = 15.0  # of each video
  config.judge = "runs/judge.npz"  # trained at first use, 1-2 minutes
  config.films = ""  # files of video; without any, no row is about films
  config.minutes = arg["minutes"]  # no row starts after these
  config.record = "out/ablations.jsonl"
  if arg["runlocal"]:
    for stage in config.stages.values():
      common.run_locally(stage)
      stage.log.ranks_every = common.unused(int)
      if "rollout" in stage:
        stage.rollout.num_frames = stage.data.num_frames
    config.seeds, config.dispatch, config.held_out = 2, 3, 1
    config.together, config.videos_per_prompt = 2, 0
  return config
