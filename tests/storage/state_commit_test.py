"""Tests that a training state has its list before it has its name."""

import numpy as np
import pytest

from videomla_jax.storage import state_commit
from videomla_jax.storage import state_digests
from videomla_jax.storage import train_states


def _names(folder) -> set[str]:
  return {path.name for path in folder.iterdir() if path.name.isdigit()}


@pytest.mark.parametrize(
  ("module", "call"),
  [
    (state_digests, "write"),
    (state_commit.atomic, "sync_all"),
    (state_commit.os, "rename"),
  ],
)
def test_a_state_that_cannot_be_listed_gets_no_name(
  tmp_path, monkeypatch, module, call
) -> None:
  state = {"a": np.arange(3.0)}
  with train_states.TrainCheckpoints(tmp_path) as saved:
    saved.save(1, state, None, {})

  def fail(*unused):
    raise OSError(28, "No space left on device")

  with pytest.raises(OSError, match="No space left"):
    with train_states.TrainCheckpoints(tmp_path) as saved:
      with monkeypatch.context() as patch:
        patch.setattr(module, call, fail)
        saved.save(2, state, None, {})
        saved.wait()
  assert _names(tmp_path) == {"1"}
  # The same step can be saved again over what is left.
  with train_states.TrainCheckpoints(tmp_path) as saved:
    saved.save(2, state, None, {})
  assert _names(tmp_path) == {"1", "2"}
  assert [*state_digests.problems(tmp_path / "2", 2)] == []
