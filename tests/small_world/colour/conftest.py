"""A small reader of digits, trained once for all tests of this folder."""

import pytest

from videomla_jax.small_world.colour import glyphs
from videomla_jax.small_world.colour import judge as judge_lib


@pytest.fixture(scope="session")
def reader_and_report() -> tuple[glyphs.Reader, judge_lib.Report]:
  recipe = judge_lib.Recipe(num_crops=8_000, num_epochs=3, num_warps=4)
  return judge_lib.train(0, recipe=recipe)


@pytest.fixture(scope="session")
def reader(
  reader_and_report: tuple[glyphs.Reader, judge_lib.Report],
) -> glyphs.Reader:
  return reader_and_report[0]
