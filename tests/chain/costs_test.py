"""Costs of the parts as lines of a record."""

import pytest

from videomla_jax.chain import costs
from videomla_jax.costs import step_time


def test_a_line_adds_up_to_steps_per_second() -> None:
  work = step_time.Work(kernels=2000, num_bytes=3_000_000_000, flops=5e11)
  cost = costs.Cost(target="h100", examples=64, work=work)
  line = cost.figures()
  took = line["launches_ms"] + line["memory_ms"] + line["products_ms"]
  assert line["steps_per_second"] == pytest.approx(1e3 / took, abs=0.1)
  assert (line["kernels"], line["gigabytes"], line["gigaflops"]) == (
    2000,
    3,
    500,
  )
