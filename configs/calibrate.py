"""Collects what a dense model's attention layers see on a few real clips.

  python -m videomla_jax.calibrate --config=configs/calibrate.py \
    --config.checkpoint=models/wan_1p3b --config.clips="a.mp4; b.mp4" \
    --config.prompts="what a shows; what b shows"

At 1.3B 16,384 tokens per layer are 1.5 GB on disk (computed). Not run at that
size for lack of weights.
"""

import ml_collections

import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; there are no variants.

  Args:
    arg: Must be empty.

  Raises:
    ValueError: If there is an argument.
  """
  config = common.without_variants(arg)
  config.checkpoint = "models/wan_1p3b"  # a model with dense attention
  # Folders of Wan's parts; empty is CHECKPOINT/NAME.
  config.parts = dict(dit="", vae="", umt5="", tokenizer="")
  config.embeddings = ""  # a file of `embed`, in place of the text encoder
  config.clips = ""  # files of video, separated by semicolons
  config.prompts = ""  # one per clip
  config.prompts_file = ""  # in place of them: text, one prompt per line
  config.num_frames = 81  # pixel frames of a clip, 5 s
  config.height, config.width = 480, 832
  config.levels = 4  # noise levels per clip, evenly spread, then warped
  config.shift = 5.0  # warp of the levels, as Wan was trained with
  config.max_tokens = 16384  # per layer; ten times the width is plenty
  config.seed = 0
  config.half_weights = False  # True holds kernels in bfloat16 only
  config.vae_dtype, config.vae_tile = "float32", 0  # as in configs/sample.py
  config.compare = ""  # a converted dit/: measure its errors, collect nothing
  config.output = "activations.safetensors"
  return config
