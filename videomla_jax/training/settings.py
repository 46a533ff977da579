"""What a training config says, as frozen dataclasses.

Config files (configs/) return a dictionary of groups. The command turns it into
these classes once (`stages.table.read`), and nothing below the command sees the
dictionary. A class is one group: `Optim.steps` is `optim.steps` of the config.
Units and reasons of the values stand beside them in the config files. A stage
adds its own fields in a subclass in its own file.
"""

from collections.abc import Mapping
import dataclasses
from typing import Annotated

from videomla_jax.models import window as window_lib
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """Group `model`: the kind of network that is trained.

  Attributes:
    size: Name in `wan_config.SIZES`, which `networks.model` must have; empty is
      whatever the network has.
    kind: Attention, "latent" or "dense".
    d_c: Channels of the content latent; 0 is whatever the network has.
    d_rope: Positional channels of a head; 0 is whatever the network has.
    rope_ladder: Frequencies of the positional key, "wan" or "fresh", see
      `AttentionConfig`; empty is whatever the network has.
  """

  size: str
  kind: str
  d_c: int
  d_rope: int
  rope_ladder: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Group `data`: what all sources of training data have in common.

  Attributes:
    kind: Key of `DATA`.
    root: Folder of the data set.
    num_frames: Latent frames of a training clip.
    latent_shape: Rows, columns and channels of a latent frame.
    batch_size: Clips of one update, over all devices.
    prompt_dropout: Chance that a prompt is replaced by the negative prompt.
  """

  kind: str
  root: config_values.Path
  num_frames: int
  latent_shape: tuple[int, int, int]
  batch_size: int
  prompt_dropout: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallWorld(Data):
  """Data of a small world, which are made at first use.

  Attributes:
    num_clips: Stored clips.
    clip_frames: Pixel frames of a stored clip.
    word_dropout: Chance that a word of a prompt is left out.
  """

  num_clips: int
  clip_frames: int
  word_dropout: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MovingDigits(SmallWorld):
  """Clips of grey digits, whose models have a codec without weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColourWorld(SmallWorld):
  """Latents of clips of the colour world.

  Attributes:
    vae: Folder of the VAE that encodes the clips; models that start from random
      weights get a copy of it.
  """

  vae: config_values.Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedClips(Data):
  """Clips and prompts that `prepare` encoded for released networks.

  Attributes:
    text_shape: Tokens, to which embeddings are padded, and their channels.
    verify: Whether to compare every byte with the report before training.
  """

  text_shape: tuple[int, int]
  verify: bool


# A further source of data is a class, a row here and a loader in `batches`.
DATA: dict[str, type[Data]] = {
  "moving_digits": MovingDigits,
  "colour_world": ColourWorld,
  "latents": PreparedClips,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
  """Group `diffusion`: noise levels; stages add what their loss reads.

  Attributes:
    shift: s of the warp S(u; s); more of it means more noise.
  """

  shift: Annotated[float, config_values.Range(0.01, 1000)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
  """Group `optim`: AdamW or Muon, schedule, and the average of the weights.

  Attributes:
    steps: Steps of the whole run.
    accumulate: Microbatches of an update, computed one after the other.
    schedule: One of `optim.SCHEDULES`.
    learning_rate: Highest learning rate.
    matrix_rate: Highest learning rate of Muon, which updates kernels and
      follows the same schedule; 0 leaves all to AdamW.
    warmup_steps: Steps in which the learning rate rises from 0.
    final_fraction: Last learning rate over the highest; None if it does not
      fall.
    b1: Decay of the first moment; 0 stores none.
    b2: Decay of the second moment.
    eps: Added to the root of the second moment.
    weight_decay: Decoupled weight decay.
    clip_norm: Largest global norm of a gradient.
    ema_decay: Decay of the exponential average; 0 keeps no average.
    ema_warmup: Whether young averages move faster.
    max_skipped: Steps in a row that may be skipped before the run ends.
  """

  steps: int
  accumulate: int
  schedule: str
  learning_rate: float
  matrix_rate: float
  warmup_steps: int
  final_fraction: float | None
  b1: float
  b2: float
  eps: float
  weight_decay: float
  clip_norm: float
  ema_decay: float
  ema_warmup: bool
  max_skipped: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
  """Group `mesh`: devices along each axis; -1 is all that are left.

  Attributes:
    data: Copies of the model, each with its share of the batch.
    fsdp: Devices that share the batch and, at rest, every large parameter.
    sequence: Devices that share the tokens of a frame.
    tensor: Devices that share heads and feed-forward channels.
  """

  data: int
  fsdp: int
  sequence: int
  tensor: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """Group `checkpoint`: saved training states.

  Attributes:
    every: Steps between two states.
    keep: Newest states that stay on disk.
  """

  every: int
  keep: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
  """Group `log`: scalars that are written.

  Attributes:
    every: Steps between two lines.
    flops: Whether to count operations, which gives the utilisation.
    ranks_every: Steps between two measurements of the ranks that attention
      occupies; None makes none.
  """

  every: int
  flops: bool
  ranks_every: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
  """Group `eval`: the loss on held-out clips.

  Attributes:
    every: Steps between two evaluations; None if there are none.
    batches: Held-out batches; 0 evaluates nothing.
  """

  every: int | None
  batches: Annotated[int, config_values.Range(0, 10**6)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
  """Group `samples`: videos that a run makes on its way.

  What nothing reads is None or empty, see `unused`.

  Attributes:
    every: Steps between two of them.
    videos: Videos each time; 0 makes none.
    seconds: Length of a video, in causal stages.
    num_steps: Euler steps, in stages that are sampled by them.
    guidance: w of classifier-free guidance, in the same stages.
    codec: Folder of the VAE that decodes prepared latents.
    fps: Pixel frames per second of prepared clips.
  """

  every: int | None
  videos: Annotated[int, config_values.Range(0, 10**6)]
  seconds: float | None
  num_steps: int | None
  guidance: float | None
  # Models of the small world own a codec and know their frame rate.
  codec: config_values.Path = ""
  fps: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """A whole config; stages narrow the groups that they add fields to.

  Attributes:
    stage: Key of `stages.table.STAGES`.
    seed: Seed of weights, data order, noise and samples.
    networks: Role of a network -> model folder; empty for random weights.
    model: The kind of network that is trained.
    network: Fields of `WanConfig` that replace those of a released network, or
      of one of the colour world; an empty text leaves one as it is.
    data: Where batches come from.
    window: Which frames a chunk sees.
    diffusion: Noise levels.
    optim: Optimiser and average.
    mesh: How devices are arranged.
    checkpoint: Saved states.
    log: Written scalars.
    eval: Loss on held-out clips.
    samples: Videos made on the way.
    dispatch: Steps of one call of the program, of which intervals of the groups
      above must be multiples.
  """

  stage: str
  seed: config_values.Seed
  networks: Mapping[str, config_values.Path]
  model: Model
  network: Mapping[str, str | bool | int]
  data: Data
  window: window_lib.Window
  diffusion: Diffusion
  optim: Optim
  mesh: Mesh
  checkpoint: Checkpoint
  log: Log
  eval: Eval
  samples: Samples
  dispatch: Annotated[int, config_values.Range(1, 10_000)] = 1


def read_data(values: config_reader.Values) -> Data:
  """Reads the one group whose class depends on a value in it.

  Args:
    values: Group `data` of a config.

  Raises:
    ValueError: If the kind or a field is unknown, or a field is missing or of
      another type.
  """
  given = dict(values.items())
  kind = given.get("kind")
  if kind not in DATA:
    raise ValueError(
      f"data.kind={kind!r} is unknown; use one of {tuple(DATA)}."
    )
  known = {name: [*DATA[name].__dataclass_fields__] for name in DATA}
  for name in given:
    others = [x for x in DATA if x != kind and name in known[x]]
    if name not in known[str(kind)] and others:
      raise ValueError(
        f"data.{name}={given[name]!r} has no effect with data.kind={kind!r}; "
        f"leave it out, or use data.kind={others[0]!r}."
      )
  return config_reader.read(DATA[str(kind)], values, at="data.")
