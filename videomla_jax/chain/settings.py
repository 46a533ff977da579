"""What a config of the whole way says: its parts and their shares of the time.

The parts are complete configs of `train_vae` and of the stages, each a group of
the config under its own name. Their folders and numbers of steps are set when
the part begins, see `parts`.
"""

from collections.abc import Mapping
import dataclasses
from typing import Annotated, Any

import ml_collections

from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values

STAGE = "chain"  # value of `stage` in such a config
_RANGE = config_values.Range(1e-3, 1e3)
_Share = Annotated[float, _RANGE]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shares:
  """Group `shares`: how the time is divided; only proportions matter.

  Attributes:
    vae: Training of the VAE; None if a finished one is taken.
    images: Stage 0 on single frames, and encoding them.
    pretraining: Stage 0 on clips, and encoding them.
    teacher_forcing: Stage 1, and the conversion before it.
    consistency: Stage 2.
    dmd: Stage 3.
  """

  vae: Annotated[float | None, _RANGE]
  images: _Share
  pretraining: _Share
  teacher_forcing: _Share
  consistency: _Share
  dmd: _Share


# In the order in which they are trained. Before teacher forcing the model of
# pretraining is converted to latent attention.
PARTS = tuple(field.name for field in dataclasses.fields(Shares))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """A config of the whole way, without the configs of its parts.

  Attributes:
    stage: `STAGE`.
    minutes: Time of the whole way.
    shares: How it is divided.
    finished_vae: Folder of a VAE that is taken as it is, and then there is no
      part that trains one; empty trains one.
    dispatch: Steps of one call of a program; 0 is 1 on a CPU and 10 elsewhere.
    probe: Calls of each program that are timed before a part begins.
    least_steps: Fewest steps of a part, however short the time is.
  """

  stage: str
  minutes: Annotated[float, config_values.Range(0.01, 1e5)]
  shares: Shares
  finished_vae: config_values.Path
  dispatch: Annotated[int, config_values.Range(0, 10_000)]
  probe: Annotated[int, config_values.Range(4, 1000)]
  least_steps: Annotated[int, config_values.Range(4, 10**6)]

  def __post_init__(self) -> None:
    if self.probe % 4:
      raise ValueError(
        f"probe={self.probe} must be a multiple of 4, after which every "
        "program of a stage was compiled; use 8."
      )
    if bool(self.finished_vae) == (self.shares.vae is not None):
      raise ValueError(
        f"finished_vae={self.finished_vae!r} and shares.vae="
        f"{self.shares.vae} contradict each other; give vae=DIR as an argument "
        "of configs/world.py, or neither."
      )


def read(
  config: ml_collections.ConfigDict,
) -> tuple[Settings, dict[str, ml_collections.ConfigDict]]:
  """Returns a config of the whole way and the configs of its parts.

  Args:
    config: Values as `configs/world.py` returns them.

  Raises:
    ValueError: If a field or part is missing, unknown, out of range or without
      effect.
  """
  values: dict[str, Any] = dict(config.items())
  parts = {}
  finished = bool(values.get("finished_vae"))
  for name in PARTS[1:] if finished else PARTS:
    part = values.pop(name, None)
    if not isinstance(part, (Mapping, ml_collections.ConfigDict)):
      raise ValueError(
        f"{name} is missing or no group; each of {', '.join(PARTS)} is a "
        "config of its own, see configs/world.py."
      )
    parts[name] = ml_collections.ConfigDict(part)
  return config_reader.read(Settings, values), parts
