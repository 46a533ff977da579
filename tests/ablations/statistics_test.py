"""Intervals against SciPy's Student t, and pairs by seed."""

import math

import numpy as np
import pytest
from scipy import stats

from videomla_jax.ablations import statistics


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_intervals_are_those_of_students_t(seed: int, n: int) -> None:
  x = np.random.default_rng(seed).normal(3, 2, n)
  found = statistics.summarise([*x])
  low, high = stats.t.interval(
    0.95, n - 1, loc=x.mean(), scale=stats.sem(x, ddof=1)
  )
  assert found.mean == pytest.approx(x.mean())
  assert found.deviation == pytest.approx(x.std(ddof=1))
  assert found.half == pytest.approx((high - low) / 2, rel=1e-3)


def test_many_values_have_no_narrower_interval_than_they_should(
  seed: int,
) -> None:
  x = np.random.default_rng(seed).normal(size=200)
  low, high = stats.t.interval(0.95, 199, scale=stats.sem(x))
  half = statistics.summarise([*x]).half
  assert (high - low) / 2 <= half <= 1.05 * (high - low) / 2


def test_a_single_value_has_no_interval() -> None:
  found = statistics.summarise([2.0])
  assert (found.mean, found.values) == (2.0, 1)
  assert math.isnan(found.half) and not found.excludes_zero


def test_pairs_share_a_seed_and_cancel_what_it_does() -> None:
  base = {0: 1.0, 1: 5.0, 2: 9.0, 3: 100.0}
  found = statistics.differences({0: 1.1, 1: 5.2, 2: 9.15, 7: 3.0}, base)
  assert found is not None and found.values == 3
  assert found.mean == pytest.approx(0.15)
  # Beside the spread of the seeds the difference would be lost.
  assert found.excludes_zero
  assert statistics.differences({5: 1.0}, base) is None
