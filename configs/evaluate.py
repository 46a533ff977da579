"""Measures models of the small world, and any videos by VBench's protocol.

  python -m videomla_jax.evaluate --config=configs/evaluate.py
  python -m videomla_jax.evaluate --config=configs/evaluate.py:vbench,length=30s
  python -m videomla_jax.evaluate --config=configs/evaluate.py:videos \
    --config.videos=FOLDER
  python -m videomla_jax.evaluate --config=configs/evaluate.py:stages

40 videos (each held-out prompt four times), 240 frames each, per model, and a
row of real clips. `latent+dense+student` are the shipped models; `stages` is
the four-step student beside the many-step model that it comes from; a row may
have several checkpoints, separated by semicolons: training seeds. Arguments:
`models`, `steps=N` of the many-step sampler, `runlocal`.

`vbench` makes the videos of a list of prompts, and goes on where it was stopped
(docs/evaluation.md). Arguments: `model`, any variant of configs/sample.py;
`length`, "short" (5 s), "30s" or "60s"; `runlocal`. `videos` measures a folder.

`colour` judges a model of the colour world (docs/colour_world.md). Arguments:
`model=DIR`; `windows`, which adds the same model under other windows;
`runlocal`.
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

import common
import sample

# The dimensions of the paper's table.
_SIX = (
  "aesthetic_quality; background_consistency; dynamic_degree; "
  "imaging_quality; motion_smoothness; subject_consistency"
)
_LATENT_FRAMES = {"short": 21, "30s": 120, "60s": 240}  # of Wan
_SECONDS = {"short": 5.0, "30s": 30.0, "60s": 60.0}  # of small models
# Prompts of the small world that training never showed.
_HELD_OUT = (
  "a slow zero moving vertically; a fast one moving horizontally; "
  "a slow two moving horizontally; a fast three moving diagonally; "
  "a slow four moving diagonally; a fast five moving vertically; "
  "a slow six moving vertically; a fast seven moving horizontally; "
  "a slow eight moving horizontally; a fast nine moving diagonally"
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: Models and other arguments, separated by commas.

  Raises:
    ValueError: If one of them is unknown.
  """
  arg = common.parse_arg(
    arg,
    models="latent+dense+student",
    steps=0,
    model="",
    length="",
    windows=False,
    runlocal=False,
  )
  if arg["models"] == "colour":
    return _colour(arg)
  if arg["windows"]:
    raise ValueError(
      "config argument windows is that of the variant colour; write colour in"
      " front of it, or leave it out."
    )
  if arg["models"] in ("vbench", "videos"):
    return _quality(arg)
  if arg["model"] or arg["length"]:
    raise ValueError(
      "config arguments model and length are those of the variant vbench; write"
      " vbench in front of them, or leave them out."
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
  config.products = ""  # a name of float8: blocks multiply in it
  config.judge = "runs/judge.npz"  # trained at first use, 1-2 minutes
  config.sampler = _sampler(arg["steps"])
  config.output = dict(folder="out", name="evaluate")
  if arg["runlocal"]:
    config.videos_per_prompt, config.seconds = 1, 3.0
    config.sampler.num_steps = 2
  return config


def _sampler(steps: int) -> dict[str, Any]:
  """Returns what is chosen of the sampler."""
  return dict(
    kind="auto",  # "few_step" for distilled students, else "euler"
    # Network calls per chunk and guidance of models that are not distilled;
    # None is 10 and 3.
    num_steps=config_dict.FieldReference(steps or None, field_type=int),
    guidance=config_dict.placeholder(float),
    shift=0.0,  # warp of the noise schedule; 0 is the model's own
    commit="clean",  # "last_pass" saves the pass over the clean chunk
  )


def _colour(arg: dict[str, Any]) -> ml_collections.ConfigDict:
  """Returns the config of a model of the colour world."""
  if arg["length"]:
    raise ValueError(
      "config argument length is that of vbench and videos; use"
      " --config.seconds."
    )
  config = ml_collections.ConfigDict()
  config.suite = "colour"
  config.checkpoint = arg["model"] or "runs/dmd/model"
  config.products = ""  # a name of float8: blocks multiply in it
  config.videos = 48  # each of 24 prompts twice; 30 have a wall
  config.batch = 24  # videos side by side
  config.seconds = 20.0  # 24 real clips have 31 digits that come out of a wall
  config.seed = 0  # of the first video; the others have 1, 2 and so on
  # Rows beside the model's own window: all of them, or some.
  config.windows = "sink0; sink1; average; full" if arg["windows"] else ""
  config.sink_decay = 0.999  # weight that an averaging sink keeps per chunk
  config.judge = "runs/colour_judge.npz"  # trained at first use, 1-2 minutes
  config.reader = dict(num_crops=32_000, num_epochs=4)
  config.sampler = _sampler(arg["steps"])
  config.output = dict(folder="out", name="colour")
  config.record = ""  # JSON lines to which a line is added
  if arg["runlocal"]:
    config.videos, config.batch, config.seconds = 2, 2, 2.0
    config.sampler.num_steps = 2
    config.judge = "runs/colour_judge_tiny.npz"
    config.reader = dict(num_crops=512, num_epochs=1)
  return config


def _quality(arg: dict[str, Any]) -> ml_collections.ConfigDict:
  """Returns the config of videos by VBench's protocol, or of a folder."""
  model, length = arg["model"] or "stage3_la6_sink1", arg["length"] or "short"
  found = arg["models"] == "videos"
  if length not in _SECONDS or arg["steps"] or (found and arg["model"]):
    raise ValueError(
      f"config arguments of {arg['models']} are length=short, 30s or 60s, and"
      " of vbench model=NAME, too; steps are --config.sampler.num_steps."
    )
  config = ml_collections.ConfigDict()
  is_small = not model.startswith(("wan", "stage"))
  if not found:
    of_frames = "" if is_small else f",frames={_LATENT_FRAMES[length]}"
    local = ",runlocal" if arg["runlocal"] else ""
    config = sample.get_config(f"{model}{of_frames}{local}")
    for key in ("image", "clip"):
      del config[key]
    # Prompts of its own have no file; VBench's list is named by the user.
    config.prompts = _HELD_OUT if is_small else ""
    config.prompts_file = "" if is_small else "VBench_full_info.json"
    config.texts_file = ""  # longer wordings of the same prompts, line by line
    config.samples = 5  # videos of each prompt, as VBench asks
    # Of prompts for temporal flickering, of which VBench keeps still videos.
    config.still_samples = 25
    config.batch = 10 if is_small else 1  # videos side by side
    config.share = "1/1"  # "3/8": the third of eight processes
    if is_small:
      config.seconds = _SECONDS[length]
    if arg["runlocal"]:
      config.samples, config.seconds = 1, 2.0
  else:
    config.videos = ""  # folder of videos
    # Pixel frames of chunks; Wan with chunks of three has 9 and 12.
    config.chunks = dict(first=0, following=0)
    config.output = dict(folder="out")
  config.suite = arg["models"]
  config.drift_seconds = 5.0  # of the beginning and of the end, compared
  config.judging = dict(
    length=length,  # "30s" and "60s" take VBench-Long
    dimensions="" if found or is_small else _SIX,
    python="",  # interpreter that has the package vbench; empty is this one
    checkout="",  # of VBench, for VBench-Long
    results="",  # files NAME_eval_results.json that VBench wrote before
  )
  config.output["name"] = arg["models"]
  config.record = ""  # JSON lines to which a line is added
  return config
