"""Videos and captions to latents and embeddings, for Wan-sized training.

  python -m videomla_jax.prepare --config=configs/prepare.py \
    --config.videos=VIDEOS --config.checkpoint=models/wan_1p3b

A clip of 81 frames at 480 x 832 is 4.2 MB of latents and at most 4.2 MB of
embedding. The VAE encodes on whatever device JAX has; at full size it was run
on a CPU only (133 s per latent frame of DECODING, docs/wan.md).

Arguments: `wan_1p3b`, `wan_14b` or another row of
videomla_jax/models/released.py, which gives frames their size and rate; `tiny`
(random networks, for trying the machinery).
"""

import ml_collections

import common
from videomla_jax.models import released


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config of one family.

  Args:
    arg: Family and other arguments, separated by commas; see above.

  Raises:
    ValueError: If one of them is unknown.
  """
  arg = common.parse_arg(arg, family="wan_1p3b", tiny=False)
  if arg["family"] not in released.FAMILIES:
    raise ValueError(
      f"config argument family={arg['family']!r} is unknown; use one of"
      f" {[*released.FAMILIES]}."
    )
  family = released.FAMILIES["wan_tiny" if arg["tiny"] else arg["family"]]
  config = ml_collections.ConfigDict()
  # A folder of videos; without a table a/b.mp4 has its caption in a/b.txt.
  config.videos = ""
  # .csv or .parquet with columns video and caption, and those of OpenVid-1M.
  config.table = ""
  config.prompts = ""  # in place of videos: a text file, one prompt per line
  config.output = "data"  # root of TFDS data sets
  config.checkpoint = "models/wan_1p3b"  # holds vae/, umt5/ and tokenizer/
  config.embeddings = ""  # a file of `embed`, in place of the text encoder
  config.negative_prompt = ""  # Wan's own is in its repository
  config.vae_dtype = "float32"
  config.clip = dict(
    height=family.height,
    width=family.width,
    num_frames=81,  # 21 latent frames of Wan2.1
    fps=float(family.fps),
  )
  config.max_clips = 1  # of a video, one after the other
  # Inclusive; 0 or empty is no bound. See videomla_jax/data/filters.py.
  config.filters = dict(
    min_height=0,
    min_width=0,
    min_fps=0.0,
    max_fps=0.0,
    min_seconds=0.0,
    max_seconds=0.0,
    min_aesthetic_score=0.0,
    min_motion_score=0.0,
    max_motion_score=0.0,
    min_temporal_consistency_score=0.0,
    camera_motion=(),
  )
  config.shard_size = 64  # inputs: the unit of work and of resuming
  config.test_fraction = 0.01  # of the videos, by a digest of their path
  config.runner = "local"  # or "beam"
  # Workers of a cluster need this package and must see the same folders, such
  # as ("--runner=FlinkRunner", "--flink_master=HOST:8081").
  config.beam_options = ("--runner=DirectRunner",)
  if arg["tiny"]:
    config.checkpoint = "random:wan_tiny"
    config.clip.num_frames = 9
    config.shard_size = 2
  return config
