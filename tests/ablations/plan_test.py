"""Every question has rows, and every row can be trained."""

import dataclasses
import pathlib

import numpy as np
import pytest

from tests import tiny_project
from videomla_jax import ablate
from videomla_jax.ablations import budget as budget_lib
from videomla_jax.ablations import outcomes
from videomla_jax.ablations import plan
from videomla_jax.ablations import runner
from videomla_jax.ablations import starts
from videomla_jax.measuring import record
from videomla_jax.runtime import config_reader

_RECORD = pathlib.Path(__file__).parents[2] / "docs" / "ablations.jsonl"


@pytest.fixture(scope="module")
def budget() -> budget_lib.Budget:
  asked = config_reader.read(ablate.Ablation, tiny_project.config("ablate"))
  names = {f.name for f in dataclasses.fields(budget_lib.Budget)} - {
    "num_frames"
  }
  fields = {name: getattr(asked, name) for name in names}
  return budget_lib.Budget(**fields, num_frames=60)


def test_studies_compare_rows_that_exist_and_no_row_is_in_none() -> None:
  rows = [name for study in plan.STUDIES for name in study.rows]
  assert {*rows} == {*plan.SETTINGS, *plan.ROLLOUTS}
  for study in plan.STUDIES:
    assert len({*study.rows}) == len(study.rows) > 1


def test_rows_of_a_study_have_equal_budgets(budget) -> None:
  for study in plan.STUDIES:
    recipes = [budget.recipe(row) for row in runner.select(study.rows)]
    for name in ("optim.steps", "data.batch_size", "data.num_frames"):
      assert len({recipe.get(name) for recipe in recipes}) == 1


@pytest.mark.parametrize("name", plan.SETTINGS)
def test_every_setting_is_a_config_that_can_be_trained(
  name: str, budget
) -> None:
  setting = plan.SETTINGS[name]
  for _, settings in budget.training(setting):
    for key, value in setting.changes.items():
      group, _, field = key.partition(".")
      assert getattr(getattr(settings, group), field) == value
  assert setting.forced_rank < 16


# The cheap part of what the record says: nothing is trained for it.
_STARTS = ("base", "calibrated start", "dense", "d_c=8")


@pytest.mark.parametrize("name", _STARTS)
def test_recorded_ranks_at_the_start_come_out_again(name: str, budget) -> None:
  lines = [
    x for x in record.read(_RECORD) if (x["setting"], x["seed"]) == (name, 0)
  ]
  setting = plan.SETTINGS[name]
  assert lines[-1]["recipe"]["start"] == setting.start
  settings = budget.training(setting)[0].settings
  settings = dataclasses.replace(settings, seed=0)
  model = starts.make(setting.start, settings, dense=budget.dense)
  found = outcomes.ranks(model)
  assert found["rank"] == lines[-1]["rank_at_start"]
  np.testing.assert_allclose(
    found["rank_entropy"], lines[-1]["rank_entropy_at_start"], rtol=1e-3
  )
