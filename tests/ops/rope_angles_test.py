"""Angles equal those of float64, near and far."""

import jax
import numpy as np
import pytest

from videomla_jax.ops import rope

_FREQUENCY = 10_000.0 ** (-np.arange(128) / 128)
_run = jax.jit(lambda x: rope.cos_sin(x, _FREQUENCY))


@pytest.mark.parametrize("largest", [1e-3, 1.0, 1000.0, 1e5, 2**24 - 1])
def test_any_number_turns_as_in_float64(largest: float, seed: int) -> None:
  rng = np.random.default_rng(seed)
  x = rng.uniform(-largest, largest, 500).astype(np.float32)
  exact = x.astype(np.float64)[:, None] * _FREQUENCY
  cos, sin = (np.asarray(y, np.float64) for y in _run(x))
  assert np.abs(cos - np.cos(exact)).max() < 1.5e-7
  assert np.abs(sin - np.sin(exact)).max() < 1.5e-7


def test_every_timestep_of_a_thousand_turns_as_in_float64() -> None:
  x = np.arange(1001, dtype=np.float32)
  exact = x.astype(np.float64)[:, None] * _FREQUENCY
  for ours, truth in zip(_run(x), (np.cos(exact), np.sin(exact)), strict=True):
    assert np.abs(np.asarray(ours, np.float64) - truth).max() < 1e-7


def test_zero_does_not_turn() -> None:
  cos, sin = _run(np.zeros(1, np.float32))
  assert (np.asarray(cos) == 1).all()
  assert not np.asarray(sin).any()
