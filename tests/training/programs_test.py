"""Several steps in one call are those steps, one after the other."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_project
from tests import tolerances
from videomla_jax import train
from videomla_jax.runtime import metrics
from videomla_jax.storage import train_states
from videomla_jax.training import finite_watch
from videomla_jax.training import interrupts
from videomla_jax.training import optim
from videomla_jax.training import programs
from videomla_jax.training.stages import table


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  return tmp_path_factory.mktemp("data")


@pytest.fixture
def config(
  data_root: pathlib.Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> Any:
  """Seven steps, of which every third begins with a given frame."""
  tiny_project.shrink(monkeypatch)
  config = tiny_project.config("teacher_forcing", "small,runlocal,steps=7")
  tiny_project.without_samples(config)
  config.data.root, config.seed = str(data_root), seed
  config.diffusion.first_frame_every = 3
  config.optim.update(steps=7)
  config.log.update(every=2, ranks_every=None)
  config.checkpoint.every = 2
  config.eval.every = 4
  return config


def _final(config: Any, workdir: pathlib.Path) -> tuple[int, Any, Any]:
  """Step, state and position of the newest saved state."""
  with train_states.TrainCheckpoints(workdir / "checkpoints") as saved:
    found = saved.restore_latest(train.init_state(*table.read(config))[0])
  return found.step, found.state, found.iterator_state


def _same(a: tuple[int, Any, Any], b: tuple[int, Any, Any]) -> None:
  assert (a[0], a[2]) == (b[0], b[2])
  leaves = jax.tree.leaves(a[1]), jax.tree.leaves(b[1])
  for x, y in zip(*leaves, strict=True):
    tolerances.assert_close(x, y, "float32_deep")


@pytest.mark.slow
def test_calls_of_several_steps_train_the_same_and_resume(
  tmp_path: pathlib.Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
  config.optim.steps = 7
  train.train(config, str(tmp_path / "single"))
  config.dispatch = 2
  train.train(config, str(tmp_path / "pairs"))
  single = _final(config, tmp_path / "single")
  _same(_final(config, tmp_path / "pairs"), single)
  lines = metrics.read_jsonl(tmp_path / "pairs")
  assert [x["step"] for x in lines if "train/loss" in x] == [2, 4, 6, 7]
  # A run of single steps that stops at step 3 goes on in pairs, in step.
  config.dispatch = 1
  pending = interrupts.StopRequest.pending
  monkeypatch.setattr(
    interrupts.StopRequest, "pending", lambda self, step: step == 3
  )
  with pytest.raises(SystemExit):
    train.train(config, str(tmp_path / "parts"))
  monkeypatch.setattr(interrupts.StopRequest, "pending", pending)
  config.dispatch = 2
  calls: list[tuple[int, int]] = []
  get = programs.Programs.get

  def noted(self, done, *args, count=1):
    calls.append((done, count))
    return get(self, done, *args, count=count)

  monkeypatch.setattr(programs.Programs, "get", noted)
  train.train(config, str(tmp_path / "parts"))
  assert calls == [(4, 1), (6, 2), (7, 1)]
  _same(_final(config, tmp_path / "parts"), single)


def test_skipped_updates_of_a_call_are_counted_step_by_step(
  tmp_path: pathlib.Path, seed: int
) -> None:
  rng = np.random.default_rng(seed)
  skipped = np.cumsum(rng.random(24) < 0.5)
  batches = rng.integers(0, 9, (24, 2))
  watches = [
    finite_watch.FiniteWatch(tmp_path / name, limit=25) for name in "ab"
  ]
  one, many = watches
  for watch in watches:
    watch.start(jnp.int32(0))
  for i in range(24):
    one.see(i + 1, jnp.int32(skipped[i]), {"x": batches[i]})
  for i in range(0, 24, 4):
    given = {"x": batches[i : i + 4]}
    many.see(i + 4, jnp.asarray(skipped[i : i + 4], jnp.int32), given)
  assert one.finish() == many.finish()
  found = [sorted(p.name for p in (tmp_path / x).glob("*")) for x in "ab"]
  assert found[0] == found[1]
  assert len(found[0]) == skipped[-1]
  for name in found[0]:
    pair = [np.load(tmp_path / x / name)["x"] for x in "ab"]
    np.testing.assert_array_equal(*pair)


def test_updates_that_are_not_finite_end_a_run_of_calls(
  tmp_path: pathlib.Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
  apply = optim.apply

  def poisoned(state, gradient, loss, settings, **named):
    return apply(state, gradient, loss * jnp.nan, settings, **named)

  monkeypatch.setattr(optim, "apply", poisoned)
  config.dispatch, config.optim.max_skipped = 2, 3
  config.diffusion.first_frame_every = 0
  with pytest.raises(ValueError, match="in 3 steps in a row, the last is 3"):
    train.train(config, str(tmp_path))
  dumped = np.load(tmp_path / "skipped" / "step-3-process-0.npz")
  assert dumped["video"].shape == (2, 6, 24, 24, 1)


def test_intervals_must_be_made_of_whole_calls(config: Any) -> None:
  config.dispatch = 4
  with pytest.raises(
    ValueError, match=r"log.every=2 must be a multiple of dispatch=4.* use 4"
  ):
    train.check(*table.read(config))
