"""A request: everything that is asked of a generation, as frozen values.

`Request.from_config` is the door of `sample`: what lies below it reads these
fields and no config. The fields have the names of the keys in
`configs/sample.py`, and their defaults are its values.
"""

import dataclasses

from videomla_jax.diffusion import sampling
from videomla_jax.models import window as window_lib
from videomla_jax.ops import quantise
from videomla_jax.runtime import config_reader

# The window of training; a rollout may use another one.
_WINDOW = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=6)

MODES = ("causal", "bidirectional")


# Configs call this group `parts`.
@dataclasses.dataclass(frozen=True, kw_only=True)
class Folders:
  """Folders of a converted release, where they do not lie in its checkpoint.

  Attributes:
    dit: The network; an empty name is `CHECKPOINT/dit`, and so on.
    vae: The VAE.
    umt5: The text encoder.
    tokenizer: The tokenizer of the text encoder.
  """

  dit: str = ""
  vae: str = ""
  umt5: str = ""
  tokenizer: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
  """Which networks to open, for which size of video, at which precision.

  Attributes:
    checkpoint: A folder of `train` or `convert`, `shipped:NAME` or
      `random:NAME`.
    parts: Folders of a converted release that lie elsewhere.
    embeddings: File of `embed` that replaces the text encoder, or empty.
    height: Pixel rows; 0 is the usual size of the release. Small models have
      their own and ignore it.
    width: Pixel columns, likewise.
    half_weights: Whether kernels are held in bfloat16 only: half the memory.
    vae_tile: Side of a decoder's tile in latent pixels; 0 is the whole frame.
    vae_dtype: Number format in which the VAE computes.
    seed: Seed of the weights of `random:NAME`.
  """

  checkpoint: str
  parts: Folders = Folders()
  embeddings: str = ""
  height: int = 0
  width: int = 0
  half_weights: bool = False
  vae_tile: int = 0
  vae_dtype: str = "float32"
  seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerChoice:
  """A sampler as far as a user chooses it; the model settles the rest.

  Attributes:
    kind: "few_step", "euler" or "unipc"; "auto" is "few_step" for distilled
      students and "euler" for all others.
    num_steps: Network calls per chunk of "euler" and "unipc".
    guidance: w in `uncond + w (cond - uncond)`; 0 runs no unconditional pass.
    shift: Warp of the noise schedule; 0 is the model's own.
  """

  kind: str = "auto"
  num_steps: int = 10
  guidance: float | int = 3.0
  shift: float | int = 0.0

  def resolve(self, *, shift: float | int, distilled: bool) -> sampling.Sampler:
    """Builds the sampler for a model.

    Args:
      shift: Warp of the noise schedule that the model was trained with.
      distilled: Whether the model was trained to need a few steps only.

    Raises:
      ValueError: If the kind is unknown or there is no step.
    """
    # Zero and "auto" stand for the model's own in every config.
    shift = self.shift or shift
    kind = self.kind
    if kind == "auto":
      kind = "few_step" if distilled else "euler"
    if kind == "few_step":
      return sampling.few_step(shift=shift)
    solvers = {"euler": sampling.euler, "unipc": sampling.unipc}
    if kind not in solvers:
      raise ValueError(
        f"sampler.kind={self.kind!r} is unknown; use one of "
        f"{['auto', *sorted(solvers), 'few_step']}."
      )
    # Without guidance the unconditional half of the batch is not run at all.
    guidance = float(self.guidance) or None
    return solvers[kind](self.num_steps, shift=shift, guidance=guidance)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """The folder and the name under which results are written.

  Attributes:
    folder: The folder, created if it is missing.
    name: First word of every file name.
  """

  folder: str = "out"
  name: str = "sample"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoOutput(Output):
  """The folder and the name of videos, and how large they are shown.

  Attributes:
    scale: Screen pixels per pixel of the video, along one side.
  """

  scale: int = 12

  def __post_init__(self) -> None:
    if self.scale < 1:
      raise ValueError(f"output.scale={self.scale} must be at least 1; use 12.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """Everything that is asked of one generation.

  Attributes:
    networks: The model, and the size of its videos.
    prompts: What to show, one text per video.
    negative_prompt: What guidance steers away from.
    seconds: Length of every video.
    seed: Seed of the noise.
    image: Picture file of the first frame, or empty.
    clip: MP4 file of a clip to continue, or empty.
    mode: "causal" makes a video chunk by chunk, "bidirectional" makes a whole
      clip at once.
    sampler: How chunks are denoised.
    window: Which latent frames a chunk sees.
    cache_dtype: Number format of cached entries; empty is the model's own.
    output: Where the results go.
  """

  networks: Networks = dataclasses.field(metadata=config_reader.INLINE)
  prompts: tuple[str, ...]
  negative_prompt: str = ""
  seconds: float | int = 60.0
  seed: int = 0
  image: str = ""
  clip: str = ""
  mode: str = "causal"
  sampler: SamplerChoice = SamplerChoice()
  window: window_lib.Window = _WINDOW
  cache_dtype: str = ""
  output: VideoOutput = VideoOutput()

  def __post_init__(self) -> None:
    # What no model could do is refused before any model is opened.
    dtypes = ("", "float32", "bfloat16", *quantise.LARGEST)
    if self.cache_dtype not in dtypes:
      raise ValueError(
        f"cache_dtype={self.cache_dtype!r} is unknown; use one of {dtypes}, "
        "where '' is the model's own."
      )
    if self.mode not in MODES:
      raise ValueError(f"mode={self.mode!r} is unknown; use one of {MODES}.")
    if self.image and self.clip:
      raise ValueError("image and clip are both given; choose one.")
    if self.mode == "bidirectional" and (self.image or self.clip):
      raise ValueError(
        "image and clip need mode='causal': a bidirectional text-to-video "
        "model takes no first frames."
      )

  @classmethod
  def from_config(cls, config: config_reader.Values) -> "Request":
    """Reads a config such as that of `configs/sample.py`.

    Args:
      config: Values by the names of the fields; `prompts` may be one string
        with semicolons.

    Raises:
      ValueError: If a key is unknown or missing, or no model could work with
        its value.
    """
    return config_reader.read(cls, config)


def count_frames(seconds: float | int, fps: float | int) -> int:
  """Counts the pixel frames of a video.

  Args:
    seconds: Length of the video.
    fps: Pixel frames per second.

  Raises:
    ValueError: If the video is shorter than one frame.
  """
  # The nearest number, since most lengths are no whole number of frames.
  count = round(seconds * fps)
  if count < 1:
    raise ValueError(
      f"seconds={seconds} is less than one frame at {fps:g} frames per "
      "second; ask for more."
    )
  return count
