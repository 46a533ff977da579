"""The time of a chunk, from rates: no program runs."""

import dataclasses

import numpy as np
import pytest

from videomla_jax.costs import chunk_time
from videomla_jax.ops import device

PEAK = device.Peak(bf16_flops=1e15, bandwidth=1e12)
SHARES = chunk_time.Shares(
  products=0.5, attention=0.25, gradient=0.2, beside=0.8
)
WORK = chunk_time.Work(
  product_flops=3e13, attention_flops=5e13, text_flops=1e13, beside_bytes=4e10
)


def test_each_part_takes_its_work_over_its_rate() -> None:
  found = chunk_time.seconds(WORK, SHARES, PEAK)
  assert tuple(found) == chunk_time.PARTS
  np.testing.assert_allclose([*found.values()], [0.06, 0.2, 0.04, 0.05])


def test_eight_bits_halve_the_time_of_products_only() -> None:
  plain = chunk_time.seconds(WORK, SHARES, PEAK)
  faster = chunk_time.seconds(
    dataclasses.replace(WORK, float8=True), SHARES, PEAK
  )
  assert faster["products"] == plain["products"] / 2
  assert {**faster, "products": 0} == {**plain, "products": 0}


def test_the_data_sheet_is_the_least_time() -> None:
  seen = chunk_time.seconds(WORK, SHARES, PEAK)
  least = chunk_time.seconds(WORK, chunk_time.SHEET, PEAK)
  assert all(least[part] < seen[part] for part in chunk_time.PARTS)


def test_the_newest_value_of_a_record_counts() -> None:
  lines = [
    dict(name="copy", unit="TB/s", value=2.0),
    dict(name="copy", unit="TB/s", value=3.0),
    dict(name="copy", unit="TB/s", value=None, error="out of memory"),
    dict(name="copy", unit="ms", value=1.0),
  ]
  assert chunk_time.rate_of(lines, name="copy", unit="TB/s") == 3.0
  with pytest.raises(ValueError, match="no line with .*matmul"):
    chunk_time.rate_of(lines, name="matmul")
