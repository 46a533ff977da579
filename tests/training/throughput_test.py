"""Tests of how the speed of steps is measured."""

import time

import jax
import pytest

from videomla_jax.training import throughput


def test_a_lap_is_the_mean_of_the_steps_since_the_last_one(monkeypatch) -> None:
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  clock = throughput.Clock(step=7)
  for _ in range(4):
    clock.add(5.0)
  now[0] += 8.0
  assert clock.lap(11) == (2.0, 5.0)
  now[0] += 3.0  # an evaluation, which is no step
  clock.lap(11)
  clock.add(6.0)
  now[0] += 1.0
  assert clock.lap(12) == (1.0, 6.0)


def test_rates_are_of_clips_and_of_a_device() -> None:
  values = throughput.scalars(examples=6, seconds=2.0, flops=8e12)
  assert values["perf/step_seconds"] == 2.0
  assert values["perf/clips_per_second"] == 3.0
  per_device = 4.0 / jax.device_count()
  assert values["perf/teraflops"] == pytest.approx(per_device)
  # Nothing is known of the rate of a CPU, and nothing was counted here.
  assert "perf/flop_utilisation" not in values
  uncounted = throughput.scalars(examples=6, seconds=2.0, flops=0.0)
  assert "perf/teraflops" not in uncounted
