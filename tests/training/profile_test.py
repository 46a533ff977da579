"""Tests of which steps are traced."""

import jax
import pytest

from videomla_jax.training import profile as profile_lib


def _traced(monkeypatch, tmp_path, steps: str) -> list[tuple[str, int]]:
  """Starts and ends of traces in a run of eight steps."""
  events: list[tuple[str, int]] = []
  now = [0]
  start = lambda folder: events.append(("start", now[0]))
  stop = lambda: events.append(("stop", now[0]))
  monkeypatch.setattr(jax.profiler, "start_trace", start)
  monkeypatch.setattr(jax.profiler, "stop_trace", stop)
  profile = profile_lib.Profile(tmp_path, steps)
  for now[0] in range(1, 9):
    profile.before(now[0])
    profile.after(now[0], {})
  profile.stop()
  return events


def test_a_range_of_steps_is_traced(monkeypatch, tmp_path) -> None:
  assert _traced(monkeypatch, tmp_path, "") == []
  events = _traced(monkeypatch, tmp_path, "3:5")
  assert events == [("start", 3), ("stop", 5)]
  # A run that ends inside the range leaves no open trace.
  events = _traced(monkeypatch, tmp_path, "7:20")
  assert events == [("start", 7), ("stop", 8)]


@pytest.mark.parametrize("steps", ["5", "a:b", "3:", "-1:2"])
def test_another_form_is_refused(tmp_path, steps) -> None:
  with pytest.raises(ValueError, match="use --profile=10:15"):
    profile_lib.Profile(tmp_path, steps)
