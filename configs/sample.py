"""Text to video, with small models or Wan.

  python -m videomla_jax.sample --config=configs/sample.py:latent \
    --config.prompts="a slow three moving horizontally; fast 7 vertical"

Four videos of a minute: 20 s of processor time, compilation included.

Variants (arguments: `steps=N`, `frames=N` latent frames of Wan,
`embeddings=FILE` of `embed` in place of Wan's text encoder, `runlocal`):
  latent, dense              the shipped small models of stage 1
  student                    the shipped four-step student of stage 3
  demo                       `make demo`: four prompts of a minute each by it
  world                      a model of the colour world, runs/dmd/model
  wan_1p3b                   VideoMLA: latent, causal, four steps
  wan_1p3b_dense             Self-Forcing and such: dense, causal, four steps
  wan_1p3b_bidirectional     Wan2.1 itself: whole clips of 5 s, 50 UniPC steps
  stage1, stage2, stage3     the release of VideoMLA by the names of its files;
  stage3_la6_sink1           _laN_sinkM: N latent frames in view, M of them sink
  wan_tiny, wan_tiny_dense, wan_tiny_bidirectional   the same three with tiny
                             random networks: seconds on a laptop, no meaning
Nothing was run at Wan's sizes, for lack of weights and a GPU.
"""

import re

import ml_collections
from ml_collections import config_dict

import common

DEMO_PROMPTS = (
  "a slow three moving horizontally; "
  "a fast eight moving vertically; "
  "a slow five moving diagonally; "
  "a fast zero moving horizontally"
)
# Pairs of digit and colour that training never shows.
WORLD_PROMPTS = (
  "a slow white 1 moves left, on a plain black background, with a wall on the "
  "left; "
  "a fast blue 7 moves up and right, a slow red 4 moves left, on a graded "
  "navy background"
)
WAN_PROMPTS = "A red fox runs through deep snow at sunrise, low camera"

# Folders that `convert` writes; see the README.
CHECKPOINTS = {
  "latent": "shipped:small_latent",
  "dense": "shipped:small_dense",
  "student": "shipped:small_student",
  "demo": "shipped:small_student",
  "world": "runs/dmd/model",
  "wan_1p3b": "models/videomla_1p3b",
  "wan_1p3b_dense": "models/self_forcing_1p3b",
  "wan_1p3b_bidirectional": "models/wan_1p3b",
  "wan_tiny": "random:wan_tiny",
  "wan_tiny_dense": "random:wan_tiny_dense",
  "wan_tiny_bidirectional": "random:wan_tiny_dense",
}

# Checkpoints of VideoMLA: its stages, perhaps with a window of their own.
STAGES = re.compile(r"stage([123])(?:_la(\d+)_sink(\d+))?")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config of one variant.

  Args:
    arg: Variant and arguments, separated by commas.

  Raises:
    ValueError: If one of them is unknown.
  """
  arg = common.parse_arg(
    arg, variant="latent", steps=0, frames=0, embeddings="", runlocal=False
  )
  variant = arg["variant"]
  stage = STAGES.fullmatch(variant)
  if variant not in CHECKPOINTS and not stage:
    raise ValueError(
      f"config variant {variant!r} is unknown; use one of "
      f"{[*CHECKPOINTS, 'stage1', 'stage2', 'stage3', 'stage3_la6_sink1']}."
    )
  config = ml_collections.ConfigDict()
  # Or a folder of train or convert.
  config.checkpoint = CHECKPOINTS.get(variant, f"models/{variant}")
  # Folders of Wan's parts; empty is CHECKPOINT/NAME.
  config.parts = dict(dit="", vae="", umt5="", tokenizer="", tiny_decoder="")
  # A file of `embed`, in place of the parts "umt5" and "tokenizer".
  config.embeddings = arg["embeddings"]
  # Separated by semicolons; one that belongs to a prompt is written "\\;"
  config.prompts = DEMO_PROMPTS
  config.prompts_file = ""  # in place of them: text, one prompt per line
  # What guidance steers away from; Wan's own text is in its repository.
  config.negative_prompt = ""
  config.seconds = 60.0
  config.seed = 0  # of the first video; the others have 1, 2 and so on
  config.image = ""  # first frame: a PNG, JPEG, WebP or GIF file
  config.clip = ""  # frames to continue: an MP4, WebM or other file of video
  config.mode = "causal"  # "bidirectional": whole clips at once
  config.height = 0  # pixels; 0 is the small model's own
  config.width = 0
  config.half_weights = False  # True holds kernels in bfloat16: half memory
  # "float8_per_token" halves it again, by blocks that multiply in float8;
  # "float8_constant" moves fewer bytes and takes no input beyond 448.
  config.products = ""
  config.spare_memory = False  # True: 1.7 GB less per video on a GPU, slower
  # True: no copies of large weights on a GPU; compiling takes minutes.
  config.layers_apart = False
  config.vae_tile = 0  # latent pixels per side of a tile; 0 is the whole frame
  config.vae_dtype = "float32"  # "bfloat16" halves the decoder's memory
  # "wan" is Wan's VAE, "tiny" a network with a 25th of its operations, whose
  # frames its authors call slightly worse; empty is the model's own.
  config.decoder = ""
  config.weights_seed = 0  # of random:NAME
  config.sampler = dict(
    kind="auto",  # "few_step" for distilled students, else "euler"; "unipc"
    # Network calls per chunk; None is 4 of "few_step", else 10.
    num_steps=_or_none(int, arg["steps"] or None),
    # w in uncond + w (cond - uncond); None is 3, 0 runs without guidance.
    guidance=_or_none(float),
    shift=0.0,  # warp of the noise schedule; 0 is the model's own
    # "last_pass" caches the last denoising pass and saves that over the clean
    # chunk, for which models are trained.
    commit="clean",
  )
  # The window of training; a rollout may use another one.
  config.window = dict(
    chunk_frames=3,
    sink_frames=1,
    local_frames=6,
    sink="first",  # "average": frames that leave flow into the sink
    sink_decay=0.999,  # weight that an averaging sink keeps per chunk
  )
  # "int8" and "float8_e4m3fn" halve a cache in bfloat16; empty is the model's.
  config.cache_dtype = ""
  config.output = dict(
    folder="out",
    name="demo" if variant == "demo" else "sample",
    scale=12,  # screen pixels per pixel
  )
  if variant == "world":
    config.prompts = WORLD_PROMPTS
    config.output.scale = 4
  if stage or variant.startswith("wan"):
    _wan(config, variant, arg["steps"])
  if stage:
    _stage(config, stage, arg["steps"])
  if arg["frames"]:
    config.seconds = _seconds(variant, arg["frames"])
  if arg["runlocal"]:
    config.seconds = 2.0
    config.sampler.num_steps = 2
    config.output.scale = 2
  return config


def _or_none(
  kind: type[float | int], value: float | int | None = None
) -> config_dict.FieldReference:
  """Returns a value that may be None or, by a flag, a number."""
  return config_dict.FieldReference(value, field_type=kind)


def _wan(config: ml_collections.ConfigDict, variant: str, steps: int) -> None:
  """Sets sizes, sampler and window of a Wan variant."""
  config.prompts = WAN_PROMPTS
  config.height, config.width = 480, 832
  config.half_weights = True
  config.output.scale = 1
  # The files of a release do not say whether it is distilled, so "auto" would
  # take Euler steps.
  config.sampler.kind = "few_step"
  if variant.endswith("dense"):  # trained with every frame of 5 s in view
    config.window.update(sink_frames=0, local_frames=21)
  if variant.endswith("bidirectional"):
    config.mode = "bidirectional"
    # 5 s would be 80 frames, but the VAE wants one more than a multiple of 4.
    config.seconds = 81 / 16  # what Wan was trained on
    # Wan2.1's README, 1.3B at 480p: shift 8 to 12, guidance 6.
    config.sampler.update(
      kind="unipc", num_steps=steps or 50, guidance=6.0, shift=8.0
    )
  if "tiny" in variant:
    config.height, config.width = 32, 48
    config.seconds = min(config.seconds, 5.0)
    config.half_weights = False
    config.sampler.num_steps = steps or 4


def _stage(
  config: ml_collections.ConfigDict, stage: re.Match[str], steps: int
) -> None:
  """Sets sampler and window of a checkpoint of VideoMLA's release."""
  config.seconds = 81 / 16  # 21 latent frames; the release has 120 and 240, too
  # The release has the network alone; the rest is Wan's.
  encoder = () if config.embeddings else ("umt5", "tokenizer")
  for part in ("vae", *encoder):
    config.parts[part] = f"models/wan_1p3b/{part}"
  if stage[1] == "1":  # not distilled: 50 steps with guidance, Causal-Forcing
    config.sampler.update(kind="unipc", num_steps=steps or 50)
  if not stage[2]:  # trained with every frame of 5 s in view
    config.window.update(sink_frames=0, local_frames=21)
    return
  local, sink = int(stage[2]), int(stage[3])
  # Their local size counts sink, history and chunk: la6_sink1 is 1 + 2 + 3.
  # Here the sink is counted apart.
  if local - sink < config.window.chunk_frames:
    raise ValueError(
      f"config variant {stage[0]!r} leaves {local - sink} frames beside the "
      f"sink; a chunk alone has {config.window.chunk_frames}."
    )
  config.window.update(sink_frames=sink, local_frames=local - sink)


def _seconds(variant: str, frames: int) -> float:
  """Returns the length of a video of Wan that has so many latent frames."""
  if frames < 1 or not variant.startswith(("wan", "stage")):
    raise ValueError(
      f"config argument frames={frames} must be positive and of a variant of "
      "Wan; small models take --config.seconds."
    )
  return (4 * (frames - 1) + 1) / 16
