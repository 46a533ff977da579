"""A request: everything that is asked of a generation, as frozen values.

`Request.from_config` is the door of `sample`: what lies below it reads these
fields and no config. The fields have the names of the keys in
`configs/sample.py`, and their defaults are its values.
"""

import dataclasses
import math

from videomla_jax.data import prompt_files
from videomla_jax.generation import networks as networks_lib
from videomla_jax.generation import sampler_choice
from videomla_jax.models import window as window_lib
from videomla_jax.ops import quantise
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values
from videomla_jax.storage import output_folder

# The window of training; a rollout may use another one.
_WINDOW = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=6)
_SAMPLER = sampler_choice.SamplerChoice()

MODES = ("causal", "bidirectional")
_MAX_PROMPTS = 1000
_MAX_WINDOW = 10_000  # latent frames: 40 minutes of Wan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """The folder and the name under which results are written.

  Attributes:
    folder: The folder, created if it is missing.
    name: First word of every file name.
  """

  folder: config_values.Path = "out"
  name: str = "sample"

  def __post_init__(self) -> None:
    output_folder.check_name(self.name, field="output.name")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoOutput(Output):
  """The folder and the name of videos, and how large they are shown.

  Attributes:
    scale: Screen pixels per pixel of the video, along one side.
  """

  scale: int = 12

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.scale < 1:
      raise ValueError(f"output.scale={self.scale} must be at least 1; use 12.")

  def check_scale(self, pixels: tuple[int, int]) -> None:
    """Refuses videos larger than a player shows.

    Args:
      pixels: Height and width before they are enlarged.

    Raises:
      ValueError: If a side gets too long.
    """
    longest = max(pixels) * self.scale
    if longest > networks_lib.MAX_SIDE:
      raise ValueError(
        f"output.scale={self.scale} makes sides of {longest} pixels; use at"
        f" most {max(1, networks_lib.MAX_SIDE // max(pixels))}."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """Everything that is asked of one generation.

  Attributes:
    networks: The model, and the size of its videos.
    prompts: What to show, one text per video.
    prompts_file: Text file with one prompt per line, which takes the place of
      `prompts`; or empty.
    negative_prompt: What guidance steers away from.
    seconds: Length of every video.
    seed: Seed of the noise of the first video; each further one has the next.
    image: Picture file of the first frame, or empty.
    clip: File of a clip to continue, or empty.
    mode: "causal" makes a video chunk by chunk, "bidirectional" makes a whole
      clip at once.
    sampler: How chunks are denoised.
    window: Which latent frames a chunk sees.
    cache_dtype: Number format of cached entries; empty is the model's own.
    output: Where the results go.
  """

  networks: networks_lib.Networks = dataclasses.field(
    metadata=config_reader.INLINE
  )
  prompts: tuple[str, ...]
  prompts_file: config_values.Path = ""
  negative_prompt: str = ""
  seconds: config_values.Seconds = 60.0
  seed: config_values.Seed = 0
  image: config_values.Path = ""
  clip: config_values.Path = ""
  mode: str = "causal"
  sampler: sampler_choice.SamplerChoice = _SAMPLER
  window: window_lib.Window = _WINDOW
  cache_dtype: str = ""
  output: VideoOutput = VideoOutput()

  def __post_init__(self) -> None:
    # What no model could do is refused before any model is opened.
    if self.prompts_file:
      listed = tuple(prompt_files.read_prompts(self.prompts_file))
      # A frozen dataclass is completed in its constructor only.
      object.__setattr__(self, "prompts", listed)
      object.__setattr__(self, "prompts_file", "")
    if not self.prompts:
      raise ValueError("prompts is empty; write at least one.")
    if len(self.prompts) > _MAX_PROMPTS:
      raise ValueError(
        f"prompts has {len(self.prompts)} texts, whose videos are made side by"
        f" side; give at most {_MAX_PROMPTS} at a time."
      )
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
    if self.mode == "bidirectional":
      self._refuse_unused()
    if self.window.sink == "first" and (
      self.window.sink_decay != _WINDOW.sink_decay
    ):
      raise ValueError(
        f"window.sink_decay={self.window.sink_decay} has no effect with"
        " window.sink='first', which keeps frames as they are; use 'average'."
      )
    for name in ("chunk_frames", "sink_frames", "local_frames"):
      size = getattr(self.window, name)
      if size is not None and size > _MAX_WINDOW:
        raise ValueError(
          f"window.{name}={size} must be at most {_MAX_WINDOW}; use 3 to 21."
        )

  def _refuse_unused(self) -> None:
    """Refuses what only a causal model has: a window and a cache."""
    if self.cache_dtype:
      raise ValueError(
        f"cache_dtype={self.cache_dtype!r} has no effect with "
        "mode='bidirectional', which has no cache; leave it out."
      )
    if self.window != _WINDOW:
      changed = {
        name: value
        for name, value in dataclasses.asdict(self.window).items()
        if value != getattr(_WINDOW, name)
      }
      raise ValueError(
        f"window={changed} has no effect with mode='bidirectional', in which "
        "every frame sees every frame; leave it out."
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
    ValueError: If the video is shorter than one frame, or its length is not
      finite.
  """
  if not math.isfinite(seconds):
    raise ValueError(f"seconds={seconds} must be finite; use 60.")
  # The nearest number is taken, since most lengths are no whole number of
  # frames.
  count = round(seconds * fps)
  if count < 1:
    raise ValueError(
      f"seconds={seconds} is less than one frame at {fps:g} frames per "
      "second; ask for more."
    )
  return count
