"""What the rows of an ablation have in common, and what each asks for."""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import ml_collections

from videomla_jax.ablations import plan
from videomla_jax.ablations import results as results_lib
from videomla_jax.small_world import prompts as prompts_lib
from videomla_jax.training import optimiser
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage as stage_lib
from videomla_jax.training.stages import table

# Groups of a training config that decide what comes out.
_GROUPS = ("model", "window", "diffusion", "optim", "rollout")
_DATA = ("num_frames", "batch_size", "prompt_dropout", "word_dropout")


class Stage(NamedTuple):
  """A stage of training as a row goes through it.

  Attributes:
    stage: The stage.
    settings: Its settings; the seed is not read.
  """

  stage: stage_lib.Stage
  settings: settings_lib.Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """What all rows of a command have in common.

  Attributes:
    stages: Config of each stage of training.
    dense: Dense bidirectional model that models are converted from, and that
      the last stage takes as its scores.
    latent: Trained model of stage 1 that is rolled out.
    student: Trained student that is rolled out.
    seeds: Seeds of every row, from 0.
    together: Most models of one program.
    dispatch: Steps of one call of it.
    held_out: Held-out batches of a loss.
    videos_per_prompt: Videos that are judged of each held-out prompt; 0 for
      none.
    num_frames: Frames of each of these videos.
    judge: File of the judge, which is trained if it is missing.
    films: Files of real films, for the settings that are trained on them.
  """

  stages: Mapping[str, ml_collections.ConfigDict]
  dense: str
  latent: str
  student: str
  seeds: int
  together: int
  dispatch: int
  held_out: int
  videos_per_prompt: int
  num_frames: int
  judge: str
  films: tuple[str, ...]

  def training(self, setting: plan.Setting) -> list[Stage]:
    """Returns the stages of a setting in turn, with the setting's configs.

    Args:
      setting: The setting.

    Raises:
      ValueError: If a stage cannot train it.
    """
    return [self._stage(name, setting.changes) for name in setting.stages]

  def _stage(self, name: str, changes: plan.Changes) -> Stage:
    """Returns a stage, and its settings with the changes of a row."""
    config = self.stages[name].copy_and_resolve_references().unlock()
    for key, value in changes.items():
      group, _, field = key.partition(".")
      config[group][field] = value
    stage, settings = table.read(config)
    stage.check(settings)
    optimiser.check(settings.optim)
    return Stage(stage, settings)

  def recipe(self, row: plan.Setting | plan.Rollout) -> results_lib.Recipe:
    """Returns everything that decides about the numbers of a row.

    Args:
      row: A row.
    """
    values: dict[str, Any] = dict(
      videos_per_prompt=self.videos_per_prompt, num_frames=self.num_frames
    )
    if isinstance(row, plan.Rollout):
      values |= dataclasses.asdict(row) | {"checkpoint": self.checkpoint(row)}
    else:
      first, *later = self.training(row)
      values |= dict(
        stage=first.stage.title,
        start=row.start,
        dense=self.dense if row.start != "scratch" else "",
        forced_rank=row.forced_rank,
        held_out=self.held_out,
      )
      values |= _decisive(first.settings)
      for stage, settings in later:
        for name, value in _decisive(settings).items():
          values[f"{stage.title}: {name}"] = value
      if row.films:
        values["films"] = self.film_names
    # As a record gives it back.
    return json.loads(json.dumps(values))

  def checkpoint(self, row: plan.Rollout) -> str:
    """Returns the model that a row rolls out.

    Args:
      row: How to roll out.
    """
    return {"latent": self.latent, "student": self.student}[row.model]

  @property
  def film_names(self) -> list[str]:
    """Names of the films, without their folders."""
    return [pathlib.Path(path).name for path in self.films]

  @property
  def prompts(self) -> list[prompts_lib.Prompt]:
    """Prompts of all videos; training showed none of them."""
    return [*prompts_lib.held_out_prompts()] * self.videos_per_prompt


def _decisive(settings: settings_lib.Training) -> dict[str, Any]:
  """Returns the values of a config that decide what comes out."""
  values = {
    f"{group}.{name}": value
    for group in _GROUPS
    if hasattr(settings, group)
    for name, value in dataclasses.asdict(getattr(settings, group)).items()
  }
  return values | {
    f"data.{name}": getattr(settings.data, name) for name in _DATA
  }
