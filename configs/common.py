"""What all configs share: variants as arguments, never as copies."""

from typing import Any

import ml_collections
from ml_collections import config_dict

Config = ml_collections.ConfigDict

# How networks of the small worlds are trained.
_OPTIM: dict[str, Any] = dict(
  schedule="cosine",
  final_fraction=0.05,
  b1=0.9,
  b2=0.99,
  clip_norm=1.0,
  ema_decay=0.999,
  ema_warmup=True,
)

# Size -> what it changes, by group of the config. Groups start with the values
# of `training` below, those of the reference for released networks; `data` and
# `network` are a size's own. Stages have a table of the same kind.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
  "small": dict(
    network={},
    data=dict(
      kind="moving_digits",
      root="data",  # TFDS folder, built at first use
      num_clips=20_000,
      clip_frames=24,  # frames of a stored clip
      num_frames=12,  # frames of a training clip: 4 chunks
      latent_shape=(6, 6, 16),
      batch_size=8,  # clips per update
      prompt_dropout=0.1,  # teaches the unconditional model for guidance
      word_dropout=0.05,  # teaches prompts that leave something open
    ),
    diffusion=dict(shift=2.0),  # 9 tokens a frame need less noise than 1560
    optim=_OPTIM | dict(learning_rate=2e-3, warmup_steps=50),
    mesh=dict(data=-1, fsdp=1),
    checkpoint=dict(every=1000),
    log=dict(every=50, flops=False),
    eval=dict(every=1000),
    samples=dict(every=2000, videos=6, seconds=15.0),
  ),
  # Sizes were chosen by those of "small"; docs/colour_world.md has what was
  # tried of rates.
  "world": dict(
    network=dict(
      dtype="",  # float32 on a CPU, bfloat16 elsewhere
      remat=False,
      # False unrolls the blocks: on two CPU cores a step took a fifth less, and
      # compiling 26 s in place of 7 s.
      scan_blocks=True,
    ),
    data=dict(
      kind="colour_world",
      root="data",  # TFDS folder; latents are encoded at first use
      vae="runs/vae/model",  # folder of train_vae, and part of every model
      num_clips=5_000,
      clip_frames=81,  # pixel frames of a stored clip, 16 per second
      num_frames=21,  # latent frames: 7 chunks
      latent_shape=(8, 8, 16),
      batch_size=16,  # clips per update
      prompt_dropout=0.1,
      word_dropout=0.05,
    ),
    diffusion=dict(shift=2.5),  # 16 tokens a frame
    optim=_OPTIM | dict(learning_rate=1e-3, warmup_steps=200),
    mesh=dict(data=-1, fsdp=1),
    checkpoint=dict(every=1000),
    log=dict(every=50, flops=False),
    eval=dict(every=1000, batches=4),
    samples=dict(every=2000, videos=6),
  ),
  "wan_1p3b": dict(
    network=dict(dtype="bfloat16", remat=True),
    data=dict(
      kind="latents",
      root="",  # folder of `prepare`
      num_frames=21,  # latent frames: 81 pixel frames at 16 per second
      latent_shape=(60, 104, 16),
      text_shape=(512, 4096),  # UMT5: padded tokens and channels
      batch_size=64,  # 8 nodes of 8 GPUs, one clip each
      prompt_dropout=0.1,  # chance of the negative prompt
      verify=False,  # compare every byte with the report before training
    ),
    samples=dict(
      codec="models/wan_1p3b/vae",  # decodes samples, if there are any
      fps=16.0,
    ),
  ),
}


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
  """Turns `file.py:dense,seed=3` into typed values.

  Args:
    arg: Comma-separated `name=value`; a bare name is a switch (True), or the
      value of the one default that is a string and comes first.
    **defaults: Names, types and default values.

  Returns:
    The defaults, with the values of the argument in their place.

  Raises:
    ValueError: If a name is unknown or a value has the wrong type.
  """
  values = dict(defaults)
  first = next(iter(defaults), None)
  for part in filter(None, (arg or "").split(",")):
    name, equals, text = part.partition("=")
    # Switches come first: a bare `runlocal` must not be taken for a size.
    if not equals and isinstance(defaults.get(name), bool):
      values[name] = True
    elif not equals and isinstance(defaults.get(first), str):
      values[first] = name
    elif name not in defaults or not equals:
      raise ValueError(
        f"config argument {part!r} is unknown; use one of "
        f"{', '.join(f'{k}={v}' for k, v in defaults.items())}."
      )
    else:
      values[name] = _typed(name, text, defaults[name])
  return values


def _typed(name: str, text: str, default: Any) -> Any:
  """Returns the value of one argument in the type of its default.

  Args:
    name: Name of the argument, for messages.
    text: What stands behind "=".
    default: A value of the wanted type.

  Raises:
    ValueError: If the text is no such value.
  """
  # `bool("false")` is True in Python, so switches are read by name.
  if isinstance(default, bool):
    if text not in ("true", "false", "True", "False"):
      raise ValueError(
        f"config argument {name}={text!r} must be true or false."
      )
    return text in ("true", "True")
  try:
    return type(default)(text)
  except ValueError as error:
    raise ValueError(
      f"config argument {name}={text!r} must be of type "
      f"{type(default).__name__}."
    ) from error


def training(
  arg: str | None,
  *,
  stage: str,
  sizes: dict[str, dict[str, Any]],
  **further: Any,
) -> tuple[dict[str, Any], Config]:
  """Returns what the stages of training have in common.

  Args:
    arg: The argument of the config file.
    stage: Row of `videomla_jax.training.stages.table`.
    sizes: The stage's table of sizes, of which `steps` are read here; the file
      of the stage calls `change` when its own groups are complete.
    **further: Further arguments of the stage and their defaults; causal stages
      have `kind` and `local`.

  Returns:
    Typed arguments, and a config; the file of the stage fills the rest in.
  """
  arg = parse_arg(
    arg,
    size="small",
    seed=0,
    steps=0,
    data=0,  # devices along the data axis; 0 is the size's own
    videos=-1,  # samples each time; -1 is the size's own
    dispatch=1,  # steps of one call of the program
    vae="",  # folder of the VAE, of "world"; empty is the size's own
    **further,
    runlocal=False,
  )
  if arg["size"] not in SIZES:
    raise ValueError(
      f"config argument size={arg['size']!r} is unknown; use one of "
      f"{tuple(SIZES)}."
    )
  size = SIZES[arg["size"]]
  config = Config()
  config.stage = stage
  config.seed = arg["seed"]
  # Steps of one call of the program. Several keep a GPU busy, whose steps are
  # short; intervals below must be multiples.
  config.dispatch = arg["dispatch"]
  config.networks = {}  # role -> folder, filled in by the stage
  config.model = dict(
    size=arg["size"],
    kind=arg.get("kind", "dense"),
    d_c=arg.get("d_c", 0),  # content latent; 0 is the network's own
    d_rope=arg.get("d_rope", 0),  # positional channels of a head, likewise
    rope_ladder="",  # their frequencies: "wan", "fresh"; empty: likewise
  )
  # Replaces fields of a network; those of moving digits stay as they are.
  config.network = size["network"]
  config.data = size["data"]
  # Frames that a chunk sees; `whole_clips` has another one.
  config.window = dict(
    chunk_frames=3, sink_frames=1, local_frames=arg.get("local", 6)
  )
  config.diffusion = dict(shift=5.0)
  config.optim = dict(
    steps=arg["steps"] or sizes[arg["size"]]["steps"],
    accumulate=1,  # microbatches of an update, one after the other
    schedule="constant",
    learning_rate=2e-6,
    matrix_rate=0.0,  # of Muon, for kernels; 0 leaves them to AdamW
    warmup_steps=0,
    final_fraction=unused(float),  # of the learning rate, cosine
    b1=0.0,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.01,
    clip_norm=10.0,
    ema_decay=0.99,
    ema_warmup=False,  # young averages move faster
    max_skipped=10,  # steps in a row that are not finite end the run
  )
  # Devices that are left share parameters, for which one is too small.
  config.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  config.checkpoint = dict(every=100, keep=2)
  config.log = dict(
    every=1,  # steps
    flops=True,  # count operations: utilisation of known GPUs
    ranks_every=unused(int),  # steps between ranks of attention; None for never
  )
  config.eval = dict(every=500, batches=8)
  config.samples = dict(
    every=500,
    videos=0,  # none, unless a size or the argument says so
    seconds=5.0,
    num_steps=10,  # of stages that are sampled by Euler steps
    guidance=3.0,
  )
  change(config, size)
  config.mesh.data = arg["data"] or config.mesh.data
  if arg["vae"] and "vae" not in config.data:
    raise ValueError(
      f"config argument vae={arg['vae']!r} has no effect with size="
      f"{arg['size']!r}; use size=world."
    )
  if arg["vae"]:
    config.data.vae = arg["vae"]
  return arg, config


def change(config: Config, size: dict[str, Any]) -> None:
  """Changes what a size changes.

  Args:
    config: A config with all its groups.
    size: Row of a table of sizes; its dictionaries are changes of the group of
      their name.
  """
  for group, values in size.items():
    if isinstance(values, dict):
      config[group].update(values)


def without_variants(arg: str | None) -> Config:
  """Returns an empty config, and refuses an argument.

  Args:
    arg: What follows the colon behind the file; must be empty.

  Raises:
    ValueError: If there is an argument.
  """
  if arg:
    raise ValueError(f"config argument {arg!r} is unknown; there are none.")
  return Config()


def unused(kind: type[float | int]) -> config_dict.FieldReference:
  """Returns None for a key that nothing reads; a flag may set a number."""
  return config_dict.FieldReference(None, field_type=kind)


def whole_clips(config: Config) -> None:
  """Changes what stages do not read in which all frames see each other."""
  # `chunk_frames` is left: losses of the first chunk and of later ones are told
  # apart.
  config.window.update(sink_frames=0, local_frames=unused(int))
  config.samples.seconds = unused(float)  # A sample is as long as a clip.


def distilled(config: Config) -> None:
  """Changes what stages do not read whose students have their own steps."""
  config.samples.update(num_steps=unused(int), guidance=unused(float))


def finish(config: Config, arg: dict[str, Any]) -> None:
  """Does what comes last in every stage: samples, and `runlocal`.

  Args:
    config: The config, all of whose groups are filled.
    arg: What `training` returned.
  """
  if arg["runlocal"]:
    run_locally(config)
  if arg["videos"] >= 0:
    config.samples.videos = arg["videos"]
  if config.samples.videos:
    return
  for name, kind in (
    ("every", int),
    ("seconds", float),
    ("num_steps", int),
    ("guidance", float),
  ):
    config.samples[name] = unused(kind)
  if "codec" in config.samples:
    config.samples.update(codec="", fps=0.0)


def run_locally(config: Config) -> None:
  """Makes a training config so small that it runs in seconds, for tests."""
  frames = min(config.data.num_frames, 6)
  config.data.update(batch_size=2, num_frames=frames)
  if "num_clips" in config.data:
    # Six latent frames of a VAE are 21 of pixels.
    pixels = 4 * (frames - 1) + 1 if "vae" in config.data else 6
    config.data.update(num_clips=64, clip_frames=pixels)
  config.optim.update(steps=min(config.optim.steps, 6), warmup_steps=2)
  config.checkpoint.update(every=2)
  if config.eval.batches:
    config.eval.update(every=3, batches=1)
  config.samples.update(every=3, videos=1)
  for name, value in (("seconds", 2.0), ("num_steps", 2)):
    if config.samples[name] is not None:
      config.samples[name] = value
  config.log.update(every=1, ranks_every=3)
