"""Tests of the judge's own errors, on real clips."""

import numpy as np

from tests.small_world.colour import faulty
from videomla_jax.small_world.colour import floor
from videomla_jax.small_world.colour import measures


def test_errors_of_real_clips_are_small(reader):
  _, videos, truth = faulty.scenes()
  judged = measures.examine(videos, faulty.PROMPTS, reader)
  found = floor.errors(judged, truth)
  assert {*found} == {*floor.ERRORS}
  assert found["position_max_px"] < 0.3
  assert found["identity_error_of_digits"] == 0
  assert found["whole_wrong"] == found["background_error"] == 0
  assert found["wall_px"] == 0
  assert found["events"] == 2
  assert found["event_wrong"] == 0
  assert found["event_hidden"] <= 4  # frames of half a pixel
  # A shifted truth is seen as that.
  moved = truth._replace(position=truth.position + np.float32([3, 4]))
  assert 4.7 < floor.errors(judged, moved)["position_px"] < 5.3
  lines = floor.table({"real": found}).splitlines()
  assert len(lines) == 2 + len(floor.ERRORS)
