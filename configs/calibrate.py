"""What the attention layers of a dense model see on a few real clips.

  python -m videomla_jax.calibrate --config=configs/calibrate.py \
    --config.checkpoint=models/wan_1p3b --config.clips="a.mp4; b.mp4" \
    --config.prompts="what a shows; what b shows"

At 1.3B 16,384 tokens per layer are 1.5 GB on disk (computed). Not run at that
size for lack of weights.
"""

import ml_collections


def get_config(arg=None):
  """Returns the config; there are no variants."""
  if arg:
    raise ValueError(f"config argument {arg!r} is unknown; there are none.")
  config = ml_collections.ConfigDict()
  config.checkpoint = "models/wan_1p3b"  # dense
  config.parts = dict(dit="", vae="", umt5="", tokenizer="")
  config.embeddings = ""  # a file of `embed`, in place of the text encoder
  config.clips = ""  # MP4 files, separated by semicolons
  config.prompts = ""  # one per clip
  config.num_frames = 81  # pixel frames of a clip, 5 s
  config.height, config.width = 480, 832
  config.levels = 4  # noise levels per clip
  config.shift = 5.0  # warp of the levels
  config.max_tokens = 16384  # per layer; ten times the width is plenty
  config.seed = 0
  config.half_weights = False
  config.vae_dtype, config.vae_tile = "float32", 0
  config.compare = ""  # a converted dit/: measure its errors, collect nothing
  config.output = "activations.safetensors"
  return config
