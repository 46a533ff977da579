"""Tests of what every stage says about itself, and of a stage made in a test."""

import dataclasses

import pytest

from tests import tiny_model
from tests import tiny_project
from videomla_jax.training import origins
from videomla_jax.training.stages import stage as stage_lib
from videomla_jax.training.stages import table


@pytest.mark.parametrize("name", table.STAGES)
def test_roles_and_origins_exist(name: str) -> None:
  stage = table.STAGES[name]
  roles = set(stage.starts_from)
  assert "model" in stage.trained
  assert {*stage.trained, *stage.scores} <= roles
  known = {*table.STAGES, "release", "conversion"}
  for allowed in stage.starts_from.values():
    assert set(allowed) - {""} <= known


@pytest.mark.parametrize("name", table.STAGES)
def test_a_config_file_has_the_name_of_the_stage(name: str) -> None:
  assert (tiny_project.CONFIGS / f"{name}.py").exists()
  assert origins.remedy(name) == f"train --config=configs/{name}.py"


@pytest.mark.parametrize(
  ("name", "updates", "frozen"),
  [
    ("pretraining", 1, set()),
    ("teacher_forcing", 1, set()),
    ("consistency", 1, {"teacher"}),
    ("dmd", 6, {"real"}),  # the student's update and five of the critic
    ("dmd,stream=240", 1, {"real"}),  # all on the same videos
  ],
)
def test_a_step_consumes_a_batch_for_each_update(name, updates, frozen) -> None:
  name, _, arg = name.partition(",")
  config = tiny_project.config(name, arg or None)
  stage, settings = table.read(config)
  assert stage.examples_per_step(settings) == updates * config.data.batch_size
  network = tiny_model.abstract(tiny_model.config("dense"))
  networks = dict.fromkeys(stage.starts_from, network)
  assert set(stage.frozen(networks)) == frozen


@pytest.mark.parametrize("name", ["teacher_forcing", "consistency"])
def test_every_fourth_step_begins_with_one_given_frame(name: str) -> None:
  stage, settings = table.read(tiny_project.config(name))
  programs = [stage.program(settings, step) for step in range(1, 9)]
  assert programs == [None, None, None, 1] * 2
  off = dataclasses.replace(settings.diffusion, first_frame_every=0)
  settings = dataclasses.replace(settings, diffusion=off)
  assert {stage.program(settings, step) for step in range(1, 9)} == {None}


def test_distilled_models_are_sampled_in_the_steps_they_learned() -> None:
  calls = {}
  for name in table.STAGES:
    config = tiny_project.config(name)
    stage, settings = table.read(config)
    sampler = stage.sampler(settings)
    calls[name] = (len(sampler.sigmas), sampler.guidance)
  assert calls["pretraining"] == calls["teacher_forcing"] == (10, 3.0)
  assert calls["consistency"] == calls["dmd"] == (4, None)


def test_a_new_stage_needs_no_other_file(monkeypatch) -> None:
  base = table.STAGES["teacher_forcing"]
  added = dataclasses.replace(
    base, title="trial", starts_from={"model": ("trial",)}
  )
  monkeypatch.setitem(table.STAGES, "trial", added)
  values = tiny_project.config("teacher_forcing").to_dict()
  stage, settings = table.read(values | {"stage": "trial"})
  assert isinstance(stage, stage_lib.Stage)
  assert (stage.title, settings.stage) == ("trial", "trial")
  with pytest.raises(ValueError, match="made by trial; train --config="):
    origins.check("model", "", stage.starts_from["model"])
