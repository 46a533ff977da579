"""Tests of intervals and tables."""

import math

import numpy as np
import pytest

from videomla_jax.small_world.colour import measures
from videomla_jax.small_world.colour import summaries


def _measures(rng, number=12):
  kinds = [f"_{kind}" for kind in measures.HIDDEN]
  names = [x for x in measures.MEASURES if x not in measures.AT_START]
  names += [f"{x}{k}" for x in names if x.startswith("memory") for k in kinds]
  keys = [f"{x}/{w}" for x in names for w in measures.WINDOWS]
  return {key: rng.random(number) for key in (*keys, *measures.AT_START)}


def test_means_leave_out_what_does_not_apply():
  values = np.array([0.5, np.nan, 0.7, 0.6])
  found = summaries.interval(values, is_share=True)
  assert (found.mean, found.n) == (pytest.approx(0.6), 3)
  assert 0.5 <= found.low <= 0.6 <= found.high <= 0.7
  none = summaries.interval(values[1:2], is_share=True)
  assert none.n == 0
  assert math.isnan(none.mean)
  assert none.text() == "-"


def test_intervals_cover_the_mean_as_often_as_they_say(seed):
  rng = np.random.default_rng(seed)
  covered = 0
  for _ in range(300):
    found = summaries.interval(rng.normal(2, 1, 40), is_share=False)
    covered += found.low <= 2 <= found.high
  # 95 %, less what a percentile bootstrap of 40 values lacks; three deviations
  # of 300 draws are 4 %.
  assert 0.89 <= covered / 300 <= 0.99


def test_shares_without_a_miss_have_an_interval():
  found = summaries.interval(np.ones(20), is_share=True)
  assert found.high == pytest.approx(1)
  # Wilson: n / (n + z^2).
  assert found.low == pytest.approx(20 / (20 + 1.96**2))
  pixels = summaries.interval(np.zeros(20), is_share=False)
  assert (pixels.low, pixels.high) == (0, 0)


def test_tables_have_every_measure_and_row(seed):
  rng = np.random.default_rng(seed)
  rows = {"real": _measures(rng), "sink 0": _measures(rng)}
  table = summaries.table(
    {name: summaries.summarise(row) for name, row in rows.items()}
  )
  lines = table.splitlines()
  assert len(lines) == 2 + 2 * len(measures.MEASURES) - len(measures.AT_START)
  for line in lines[2:]:
    assert line.count(" | ") == 4, line


def test_sets_are_compared_video_by_video(seed):
  rng = np.random.default_rng(seed)
  first = _measures(rng)
  second = {key: value - 0.25 for key, value in first.items()}
  rows = {"window": first, "sink": second}
  lines = summaries.memory_table(rows).splitlines()
  assert lines[0] == "| measure | window | sink | sink - window |"
  assert len(lines) == 2 + len(summaries.MEMORY_ROWS)
  assert lines[2].endswith("| -0.250 (-0.250 to -0.250) |")
  rows["few"] = _measures(rng, number=3)
  assert summaries.memory_table(rows).splitlines()[2].endswith("| - |")


def test_no_sets_are_refused() -> None:
  with pytest.raises(ValueError, match="at least one set"):
    summaries.memory_table({})
