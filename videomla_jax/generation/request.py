"""A request: everything that is asked of a generation, as frozen values.

`Request.from_config` is the door of `sample`: what lies below it reads these
fields and no config. The fields have the names of the keys in
`configs/sample.py`, and their defaults are its values.
"""

import dataclasses
import math

from videomla_jax.generation import networks as networks_lib
from videomla_jax.generation import sampler_choice
from videomla_jax.models import window as window_lib
from videomla_jax.ops import quantise
from videomla_jax.runtime import config_reader
from videomla_jax.storage import output_folder

# The window of training; a rollout may use another one.
_WINDOW = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=6)
_SAMPLER = sampler_choice.SamplerChoice()

MODES = ("causal", "bidirectional")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """The folder and the name under which results are written.

  Attributes:
    folder: The folder, created if it is missing.
    name: First word of every file name.
  """

  folder: str = "out"
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

  networks: networks_lib.Networks = dataclasses.field(
    metadata=config_reader.INLINE
  )
  prompts: tuple[str, ...]
  negative_prompt: str = ""
  seconds: float | int = 60.0
  seed: int = 0
  image: str = ""
  clip: str = ""
  mode: str = "causal"
  sampler: sampler_choice.SamplerChoice = _SAMPLER
  window: window_lib.Window = _WINDOW
  cache_dtype: str = ""
  output: VideoOutput = VideoOutput()

  def __post_init__(self) -> None:
    # What no model could do is refused before any model is opened.
    if not self.prompts:
      raise ValueError("prompts is empty; write at least one.")
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
