"""The stages of training by name."""

from collections.abc import Mapping

import ml_collections

from videomla_jax.runtime import config_reader
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import consistency
from videomla_jax.training.stages import dmd
from videomla_jax.training.stages import pretraining
from videomla_jax.training.stages import stage as stage_lib
from videomla_jax.training.stages import teacher_forcing

STAGES: dict[str, stage_lib.Stage] = {
  "pretraining": pretraining.STAGE,
  "teacher_forcing": teacher_forcing.STAGE,
  "consistency": consistency.STAGE,
  "dmd": dmd.STAGE,
}


def read(
  config: config_reader.Values,
) -> tuple[stage_lib.Stage, settings_lib.Training]:
  """Returns the stage of a config, and the config in its classes.

  Args:
    config: Groups of plain values, as a file in configs/ returns them.

  Raises:
    ValueError: If the stage or a field is unknown, or a field is missing or of
      another type.
  """
  values = dict(config.items())
  name = values.get("stage")
  if name not in STAGES:
    raise ValueError(
      f"stage={name!r} is unknown; use one of {', '.join(STAGES)}."
    )
  stage = STAGES[str(name)]
  data = values.get("data")
  if isinstance(data, (Mapping, ml_collections.ConfigDict)):
    values["data"] = settings_lib.read_data(data)
  settings = config_reader.read(stage.settings, values)
  # Roles are the keys of a dictionary, which the reader takes as it is.
  if set(settings.networks) != set(stage.starts_from):
    raise ValueError(
      f"networks has {', '.join(settings.networks) or 'no role'} but "
      f"{stage.title} needs {', '.join(stage.starts_from)}; name a folder for "
      "each of these and no other."
    )
  return stage, settings
