"""Text to video with a trained small model.

  python -m videomla_jax.sample --config=configs/sample.py:latent \
    --config.prompts="a slow three moving horizontally; fast 7 vertical"

Four videos of a minute: 20 s of processor time, compilation included.

Variants: `latent` (the shipped model), `dense` (its twin), `demo` (what `make
demo` runs: three prompts of a minute each). Arguments: `steps=N`, `runlocal`.
"""

import os
import sys

import ml_collections

sys.path.insert(0, os.path.dirname(__file__))
import common

DEMO_PROMPTS = (
  "a slow three moving horizontally; "
  "a fast eight moving vertically; "
  "a slow five moving diagonally; "
  "a fast zero moving horizontally"
)


def get_config(arg=None):
  """Returns the config of one variant."""
  arg = common.parse_arg(arg, variant="latent", steps=10, runlocal=False)
  variant = arg["variant"]
  if variant not in ("latent", "dense", "demo"):
    raise ValueError(
      f"config variant {variant!r} is unknown; use latent, dense or demo."
    )
  kind = "dense" if variant == "dense" else "latent"
  config = ml_collections.ConfigDict()
  config.checkpoint = f"shipped:small_{kind}"  # or a folder of `train`
  config.prompts = DEMO_PROMPTS  # separated by semicolons
  config.seconds = 60.0
  config.seed = 0
  config.image = ""  # first frame: a picture file
  config.clip = ""  # frames to continue: an MP4 file
  config.sampler = dict(
    kind="euler",  # "few_step" for distilled students
    num_steps=arg["steps"],
    guidance=3.0,  # w in uncond + w (cond - uncond); 0 runs none
  )
  # The window of training by default; any may be changed at rollout.
  config.window = dict(chunk_frames=3, sink_frames=1, local_frames=6)
  config.output = dict(
    folder="out",
    name="demo" if variant == "demo" else "sample",
    scale=12,  # screen pixels per pixel
  )
  if arg["runlocal"]:
    config.seconds = 2.0
    config.sampler.num_steps = 2
    config.output.scale = 2
  return config
