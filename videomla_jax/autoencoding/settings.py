"""What a config of VAE training says, as frozen dataclasses."""

import dataclasses
from typing import Annotated

from videomla_jax.models import vae_coders
from videomla_jax.runtime import config_values
from videomla_jax.training import optimiser
from videomla_jax.training import settings as training_settings

_Count = Annotated[int, config_values.Range(1, 10**6)]
_Weight = Annotated[float, config_values.Range(0.0, 1e6)]

SOURCES = ("colour_world", "films")
_SIZES = ("width", "channels", "multipliers", "num_blocks", "temporal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """Group `network`: the VAE that is trained.

  Attributes:
    start: Folder of a VAE to go on with, whose sizes the next five are then: 0
      or empty. Without it a new one is made.
    width: Channels at full resolution of a new one.
    channels: Latent channels of a new one.
    multipliers: Channels of each resolution of a new one, in units of `width`.
    num_blocks: Residual blocks per resolution of a new one.
    temporal: Whether each halving of a new one also halves time.
    dtype: Type of the convolutions; empty is bfloat16 on a GPU and float32
      elsewhere.
    decoder_only: Whether the encoder stays as it is, so that latents and what
      was trained on them stay valid; needs `start`.
  """

  start: config_values.Path
  width: int
  channels: int
  multipliers: tuple[int, ...]
  num_blocks: int
  temporal: tuple[bool, ...]
  dtype: str
  decoder_only: bool

  def __post_init__(self) -> None:
    if self.decoder_only and not self.start:
      raise ValueError(
        "network.decoder_only keeps the encoder of network.start, which is "
        "empty; name the folder of a VAE, or leave it False."
      )
    for name in _SIZES if self.start else ():
      size = getattr(self, name)
      if size:
        raise ValueError(
          f"network.{name}={size!r} has no effect with network.start="
          f"{self.start!r}, which has its own; leave it {type(size)()!r}."
        )

  def config(self) -> vae_coders.VaeConfig:
    """Returns the sizes of a new VAE, whose statistics are not known yet.

    Raises:
      ValueError: If the sizes do not fit each other.
    """
    return vae_coders.VaeConfig(
      width=self.width,
      channels=self.channels,
      multipliers=self.multipliers,
      num_blocks=self.num_blocks,
      temporal=self.temporal,
      mean=(0.0,) * self.channels,
      std=(1.0,) * self.channels,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Group `data`: where clips come from.

  Attributes:
    kind: One of `SOURCES`: clips that the program draws, or cuts from films.
    films: Folder of the files, for kind "films".
    num_frames: Pixel frames of a clip, one more than a multiple of the stride;
      at least two, since differences between frames are learned.
    height: Pixel rows.
    width: Pixel columns.
    fps: Pixel frames per second that films are read at.
    batch_size: Clips of one update.
  """

  kind: str
  films: config_values.Path
  num_frames: Annotated[int, config_values.Range(2, 10**6)]
  height: _Count
  width: _Count
  fps: Annotated[float, config_values.Range(0.01, 1000.0)]
  batch_size: _Count

  def __post_init__(self) -> None:
    if self.kind not in SOURCES:
      raise ValueError(
        f"data.kind={self.kind!r} is unknown; use one of {SOURCES}."
      )
    if bool(self.films) != (self.kind == "films"):
      raise ValueError(
        f"data.films={self.films!r} with data.kind={self.kind!r}; "
        "data.kind='films' names a folder of videos, the others none."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
  """Group `images`: the first steps, in which clips are single frames.

  They show more backgrounds and shapes than as many frames of a few clips, and
  what they teach holds for the frames of clips, docs/method.md, section 4.9.

  Attributes:
    steps: Steps of this kind; 0 begins with clips.
    batch_size: Frames of one update.
  """

  steps: Annotated[int, config_values.Range(0, 10**9)]
  batch_size: _Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """Group `loss`: weights beside the mean absolute error, Eq. (4.8).

  Attributes:
    squared: Of the mean squared error.
    kl: Of the divergence from a normal distribution, per latent scalar.
    temporal: Of the error of differences between frames.
  """

  squared: _Weight
  kl: _Weight
  temporal: _Weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every:
  """Group `every`: steps from one to the next of what a run does beside.

  Attributes:
    log: Lines of scalars.
    measure: Measurements on held-out clips, with a sheet of them.
    save: Saved states.
    dispatch: Steps of one call of the program; the others are multiples.
  """

  log: _Count
  measure: _Count
  save: _Count
  dispatch: _Count

  def __post_init__(self) -> None:
    for name in ("log", "measure", "save"):
      steps = getattr(self, name)
      if steps % self.dispatch:
        raise ValueError(
          f"every.{name}={steps} must be a multiple of "
          f"every.dispatch={self.dispatch}, the steps of one call; round it."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The whole config of VAE training.

  Attributes:
    seed: Seed of weights, clips and noise.
    network: The VAE.
    data: Clips.
    images: Single frames, which come first.
    loss: Weights of the loss.
    optim: Optimiser and average.
    every: What happens how often.
    held_out: Held-out clips of a measurement.
    keep: Newest states that stay on disk.
    minutes: Minutes of training after which the run ends as if its steps were
      done; 0 for no limit.
  """

  seed: config_values.Seed
  network: Network
  data: Data
  images: Images
  loss: Loss
  optim: training_settings.Optim
  every: Every
  held_out: _Count
  keep: _Count
  minutes: Annotated[float, config_values.Range(0.0, 1e6)]

  def __post_init__(self) -> None:
    optimiser.check(self.optim)
    if self.images.steps % self.every.dispatch:
      raise ValueError(
        f"images.steps={self.images.steps} must be a multiple of "
        f"every.dispatch={self.every.dispatch}, the steps of one call; round "
        "it."
      )
    if self.images.steps and self.network.start:
      raise ValueError(
        f"images.steps={self.images.steps} are for a new network, and "
        f"network.start={self.network.start!r} knows pictures; use 0."
      )
    if self.optim.accumulate != 1:
      raise ValueError(
        f"optim.accumulate={self.optim.accumulate} is not offered here; use 1 "
        "and fewer clips."
      )
    if self.optim.ema_decay == 0:
      raise ValueError(
        "optim.ema_decay=0.0 keeps no average, which is what is handed on; use "
        "0.999."
      )
    if self.network.decoder_only and self.optim.weight_decay:
      raise ValueError(
        f"optim.weight_decay={self.optim.weight_decay} would shrink the "
        "encoder that network.decoder_only keeps; use 0.0."
      )
