"""Tests of fitted paths: exact on exact paths, and close under noise."""

import numpy as np
import pytest

from videomla_jax.small_world.colour import paths


def _path(rng, speed):
  low, reach = rng.uniform(4, 10), rng.uniform(30, 50)
  return paths.Path(low, reach, rng.uniform(0, 2 * reach), speed)


@pytest.mark.parametrize("speed", [0.0, 0.625, -1.25, 0.9])
@pytest.mark.parametrize("gap", [False, True])
def test_fit_finds_the_path_of_exact_places(speed, gap, seed):
  rng = np.random.default_rng(seed)
  for _ in range(5):
    path = _path(rng, speed)
    time = np.arange(400)
    if gap:
      time = time[(time < 60) | (time > 95)]
    edges = path.low, path.low + path.reach
    found = paths.fit(time, path.at(time), edges=edges)
    # Rounding of the normal equations, whose terms are up to 400 squared.
    np.testing.assert_allclose(found.at(time), path.at(time), atol=1e-4)
    assert abs(found.speed) == pytest.approx(abs(speed), abs=1e-5)


def test_fit_tells_edges_that_are_not_known(seed):
  rng = np.random.default_rng(seed)
  path = _path(rng, 1.25)
  time = np.arange(400)
  place = path.at(time) + rng.normal(0, 0.1, len(time))
  edges = path.low + 0.4, path.low + path.reach - 0.3
  found = paths.fit(time, place, edges=edges)
  assert np.abs(found.at(time) - path.at(time)).max() < 0.3
  assert found.low == pytest.approx(path.low, abs=0.2)


def test_a_known_speed_helps_where_few_frames_are_seen(seed):
  rng = np.random.default_rng(seed)
  errors = []
  for known in (None, (0.625, 0.006)):
    away = []
    for _ in range(20):
      path = _path(rng, 0.625)
      time = np.arange(6)
      place = path.at(time) + rng.normal(0, 0.1, len(time))
      edges = path.low, path.low + path.reach
      found = paths.fit(time, place, edges=edges, known=known)
      away.append(abs(found.speed) - 0.625)
    errors.append(np.square(away).mean() ** 0.5)
  assert errors[1] < 0.5 * errors[0]


def test_runs_are_those_of_true():
  mask = np.array([True, False, True, True, False, False, True])
  assert paths.split_runs(mask) == [(0, 1), (2, 4), (6, 7)]
  assert paths.split_runs(~mask[:1]) == []
