"""Tests of configs as dataclasses: complete, typed, and said in one sentence."""

import dataclasses

import pytest

from tests import tiny_project
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import table

_STAGES = [*table.STAGES]


@pytest.mark.parametrize("size", ["small", "wan_1p3b"])
@pytest.mark.parametrize("name", _STAGES)
def test_every_value_of_a_config_is_read(name: str, size: str) -> None:
  values = tiny_project.config(name, size).to_dict()
  _, settings = table.read(values)

  def compare(ours: dict, theirs: dict) -> None:
    for field, value in theirs.items():
      if isinstance(value, dict):
        compare(ours[field], value)
      else:
        assert ours[field] == value, field

  compare(dataclasses.asdict(settings), values)


@pytest.mark.parametrize("name", _STAGES)
def test_a_field_that_is_missing_is_named(name: str) -> None:
  values = tiny_project.config(name).to_dict()
  for group in (x for x in values if isinstance(values[x], dict)):
    for field in values[group]:
      # Windows have defaults, and networks are named by role.
      if group in ("window", "networks", "network"):
        continue
      # Configs of earlier versions have none of these.
      if field in ("rope_ladder", "ranks_every"):
        continue
      less = values | {group: {**values[group]}}
      del less[group][field]
      with pytest.raises(ValueError) as error:
        table.read(less)
      named = "data.kind" if field == "kind" and group == "data" else field
      assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(lerning_rate=1.0), "lerning_rate is unknown; use one of"),
    (dict(optim=dict(lr=1.0)), "optim.lr is unknown"),
    (dict(optim=dict(steps=1.5)), "optim.steps=1.5 must be int"),
    (dict(optim=dict(ema_warmup=1)), "ema_warmup=1 must be bool"),
    (dict(optim=dict(schedule=None)), "schedule=None must be str"),
    (dict(data=3), "data=3 must be a group"),
    (dict(data=dict(text_shape=(2, 3))), "text_shape=.* has no effect with"),
    (dict(data=dict(kind="tape")), "data.kind='tape' is unknown; use one of"),
    (dict(rollout=dict(num_frames=6)), "rollout is unknown"),
    (dict(networks=dict(critic="x")), "networks has model, critic but"),
    (dict(stage="gan"), "stage='gan' is unknown; use one of pretraining"),
  ],
)
def test_what_a_stage_does_not_know_is_refused(changes, words) -> None:
  values = tiny_project.config("teacher_forcing").to_dict()
  for name, change in changes.items():
    nested = isinstance(change, dict) and name in values
    values[name] = values[name] | change if nested else change
  with pytest.raises(ValueError, match=words):
    table.read(values)


def test_lists_may_stand_for_tuples() -> None:
  values = tiny_project.config("dmd").to_dict()
  values["diffusion"] |= dict(timesteps=[1000, 500])
  _, settings = table.read(values)
  assert settings.diffusion.timesteps == (1000, 500)


def test_settings_do_not_change() -> None:
  _, settings = table.read(tiny_project.config("dmd"))
  with pytest.raises(dataclasses.FrozenInstanceError):
    settings.optim.steps = 3
  assert isinstance(settings.data, settings_lib.MovingDigits)
