"""Tests of training that is killed, moved to other devices, or out of disk."""

import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests import recovery
from tests import tolerances
from videomla_jax.storage import train_states


@pytest.mark.slow
def test_a_run_killed_at_any_moment_equals_one_that_was_not(
  tmp_path, seed
) -> None:
  # `python -m tests.recovery` does the same with sixty kills.
  assert recovery.compare(tmp_path, kills=2, steps=60, seed=seed)


@pytest.mark.slow
def test_a_run_goes_on_on_fewer_devices(tmp_path) -> None:
  moved = recovery.Child(tmp_path, "moved", steps=6, batch=8)
  for devices, stop_at in ((8, 2), (4, 4), (1, 0)):
    # Whoever sends the signal, and however many follow, the state is saved.
    number = signal.SIGTERM if devices == 8 else signal.SIGINT
    code = moved.run(devices=devices, stop_at=stop_at, stop_by=number)
    assert code == (128 + number if stop_at else 0)
  whole = recovery.Child(tmp_path, "whole", steps=6, batch=8)
  assert whole.run(devices=1) == 0
  ours, expected = moved.outcome(), whole.outcome()
  assert sorted(ours.losses) == sorted(expected.losses) == [*range(1, 7)]
  for step, loss in expected.losses.items():
    tolerances.assert_close(ours.losses[step], loss)
  for a, b in zip(ours.arrays, expected.arrays, strict=True):
    tolerances.assert_close(a, b, "float32_deep")
  assert ours.iterator_state == expected.iterator_state


_FULL_DISK = """
import resource, signal, sys
import numpy as np
from videomla_jax.storage import train_states
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
  with train_states.TrainCheckpoints(sys.argv[1], keep=2) as saved:
    saved.save(2, {"a": np.arange(100_000.0)}, None, {})
    saved.wait()
except Exception as error:
  print("refused:", type(error).__name__)
"""


def test_a_full_disk_keeps_the_state_before(tmp_path, seed) -> None:
  first = np.random.default_rng(seed).standard_normal(100_000)
  with train_states.TrainCheckpoints(tmp_path, keep=2) as saved:
    saved.save(1, {"a": first}, {"next": 3}, {})
  # A limit on the size of files, in a process of its own, is a full disk.
  assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096
  done = subprocess.run(
    [sys.executable, "-c", _FULL_DISK, str(tmp_path)],
    cwd=recovery.ROOT,
    capture_output=True,
    text=True,
  )
  assert "refused:" in done.stdout, done.stderr[-2000:]
  with train_states.TrainCheckpoints(tmp_path, keep=2) as saved:
    restored = saved.restore_latest({"a": first})
  assert restored.step == 1 and restored.iterator_state == {"next": 3}
  np.testing.assert_array_equal(restored.state["a"], np.float32(first))
