"""A small judge, trained once for all tests of this folder."""

import pytest

from videomla_jax.small_world import judge as judge_lib
from videomla_jax.small_world import judge_network


@pytest.fixture(scope="session")
def judge_and_report() -> tuple[judge_network.Judge, judge_lib.JudgeReport]:
  recipe = judge_lib.JudgeRecipe(num_frames=10_000, num_epochs=3, num_warps=6)
  return judge_lib.train_judge(0, recipe=recipe)


@pytest.fixture(scope="session")
def judge(
  judge_and_report: tuple[judge_network.Judge, judge_lib.JudgeReport],
) -> judge_network.Judge:
  return judge_and_report[0]
