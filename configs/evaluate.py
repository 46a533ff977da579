"""Measures models of the small world on videos of a minute.

  python -m videomla_jax.evaluate --config=configs/evaluate.py
  python -m videomla_jax.evaluate --config=configs/evaluate.py:stages

40 videos (each held-out prompt four times), 240 frames each, per model, and a
row of real clips. `latent+dense+student` are the shipped models; `stages` is
the four-step student beside the many-step model that it comes from; a row may
have several checkpoints, separated by semicolons: training seeds. Arguments:
`models`, `steps=N` of the many-step sampler, `runlocal`.
"""

import ml_collections
from ml_collections import config_dict

import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: Models and other arguments, separated by commas.

  Raises:
    ValueError: If one of them is unknown.
  """
  arg = common.parse_arg(
    arg, models="latent+dense+student", steps=0, runlocal=False
  )
  config = ml_collections.ConfigDict()
  config.checkpoints = {  # name of the row -> checkpoints
    kind: f"shipped:small_{kind}" for kind in arg["models"].split("+")
  }
  if arg["models"] == "stages":
    config.checkpoints = dict(
      many_steps="runs/teacher_forcing/model", student="runs/dmd/model"
    )
  config.videos_per_prompt = 4  # 40 videos: standard errors of a few per cent
  config.seconds = 60.0
  config.seed = 0
  config.products = ""  # "float8_per_token": blocks multiply in float8
  config.judge = "runs/judge.npz"  # trained at first use, 1-2 minutes
  config.sampler = dict(
    kind="auto",  # "few_step" for distilled students, else "euler"
    # Network calls per chunk and guidance of models that are not distilled;
    # None is 10 and 3.
    num_steps=config_dict.FieldReference(arg["steps"] or None, field_type=int),
    guidance=config_dict.placeholder(float),
    shift=0.0,  # warp of the noise schedule; 0 is the model's own
    commit="clean",  # "last_pass" saves the pass over the clean chunk
  )
  config.output = dict(folder="out", name="evaluate")
  if arg["runlocal"]:
    config.videos_per_prompt, config.seconds = 1, 3.0
    config.sampler.num_steps = 2
  return config
