"""Tests of training: files, exact resume, and what is refused."""

from collections.abc import Iterator
import json
import pathlib
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_project
from videomla_jax import train
from videomla_jax.runtime import metrics
from videomla_jax.small_world import model as model_lib
from videomla_jax.storage import train_states
from videomla_jax.training import optim
from videomla_jax.training import regression
from videomla_jax.training.stages import table
from videomla_jax.training.stages import teacher_forcing

_EXACT = ("train/loss", "train/grad_norm", "eval/loss", "rank/median")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  return tmp_path_factory.mktemp("data")


@pytest.fixture
def compiled_once(
  tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
  """Keeps compiled programs on disk, since each run compiles its own."""
  names = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
    "jax_persistent_cache_min_compile_time_secs": 0.5,
  }
  before = {name: getattr(jax.config, name) for name in names}
  for name, value in names.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture
def config(
  data_root: pathlib.Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> Any:
  """Returns six steps of a tiny model."""
  tiny_project.shrink(monkeypatch)
  config = tiny_project.config("teacher_forcing", "small,runlocal")
  config.data.root = str(data_root)
  config.seed = seed
  return config


def _final_state(config: Any, workdir: pathlib.Path) -> tuple[int, list, Any]:
  """Returns step, arrays and data position of the newest saved state."""
  with train_states.TrainCheckpoints(workdir / "checkpoints") as saved:
    restored = saved.restore_latest(train.init_state(*table.read(config))[0])
  leaves = [np.asarray(x) for x in jax.tree.leaves(restored.state)]
  return restored.step, leaves, restored.iterator_state


def _losses(workdir: pathlib.Path) -> list[tuple]:
  lines = metrics.read_jsonl(workdir)
  return [(x["step"], *(x.get(n) for n in _EXACT)) for x in lines]


def _interrupt_after(step: int) -> pytest.MonkeyPatch:
  """Stops training while the metrics of a step are written."""
  write = metrics.MetricWriter.scalars

  def scalars(self, done, values):
    write(self, done, values)
    if done == step:
      raise KeyboardInterrupt

  patch = pytest.MonkeyPatch()
  patch.setattr(metrics.MetricWriter, "scalars", scalars)
  return patch


@pytest.mark.slow
def test_interrupted_run_equals_an_uninterrupted_one(
  tmp_path: pathlib.Path, config: Any, compiled_once: None
) -> None:
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  train.train(config, str(whole))
  # States are saved at 2 and 4: step 5 is run twice.
  patch = _interrupt_after(5)
  with pytest.raises(KeyboardInterrupt):
    train.train(config, str(parts))
  patch.undo()
  assert not (parts / "model").exists()
  assert [x[0] for x in _losses(parts)][-1] == 5
  train.train(config, str(parts))
  assert _losses(parts) == _losses(whole)
  assert sorted({x[0] for x in _losses(whole)}) == [1, 2, 3, 4, 5, 6]
  # A latent of the small network has 16 channels.
  ranks = {x[0]: x[-1] for x in _losses(whole) if x[-1] is not None}
  assert [*ranks] == [3, 6] and all(0 < r <= 16 for r in ranks.values())
  ours, theirs = (_final_state(config, x) for x in (parts, whole))
  assert ours[0] == theirs[0] == 6
  for a, b in zip(ours[1], theirs[1], strict=True):
    np.testing.assert_array_equal(a, b)
  assert ours[2] == theirs[2]  # the same clips would come next
  _check_model(config, whole)


def _check_model(config: Any, workdir: pathlib.Path) -> None:
  """Asserts that the finished model is the EMA and says how it was made."""
  about = json.loads((workdir / "model" / "config.json").read_text())
  assert about["training"] == json.loads(config.to_json())
  assert about["distilled"] is False
  assert about["steps"] == 6 and "videomla_jax.train" in about["command"]
  model = model_lib.load(workdir / "model")
  assert model.config.window == tiny_project.WINDOW
  with train_states.TrainCheckpoints(workdir / "checkpoints") as saved:
    state = saved.restore_latest(train.init_state(*table.read(config))[0]).state
  pairs = zip(jax.tree.leaves(model), jax.tree.leaves(state.ema), strict=True)
  for a, b in pairs:
    np.testing.assert_array_equal(a, b)
  moved = [
    not np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.model))
  ]
  assert any(moved)


def test_updates_that_are_not_finite_are_skipped_and_end_the_run(
  tmp_path: pathlib.Path, config: Any
) -> None:
  config.log.every = 100
  config.optim.update(learning_rate=5e18, max_skipped=2)
  config.diffusion.first_frame_every = 0
  with pytest.raises(ValueError, match="lower optim.learning_rate"):
    train.train(config, str(tmp_path))
  assert not (tmp_path / "model").exists()
  dumped = sorted((tmp_path / "skipped").glob("*.npz"))
  assert len(dumped) >= 2
  assert set(np.load(dumped[0])) == {"video", "tokens"}
  with train_states.TrainCheckpoints(tmp_path / "checkpoints") as saved:
    restored = saved.restore_latest(train.init_state(*table.read(config))[0])
  # Step 2 was skipped, and nothing is saved while that goes on.
  assert restored is None


@pytest.mark.slow
def test_states_of_skipped_steps_push_out_no_others(
  tmp_path: pathlib.Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
  apply, saved = optim.apply, []

  def poisoned(state, gradient, loss, settings, **named):
    bad = (state.step == 2) | (state.step == 3)  # steps 3 and 4
    return apply(
      state, gradient, jnp.where(bad, jnp.nan, loss), settings, **named
    )

  save = train_states.TrainCheckpoints.save

  def noted(self, step, *given, **named):
    saved.append(step)
    return save(self, step, *given, **named)

  monkeypatch.setattr(optim, "apply", poisoned)
  monkeypatch.setattr(train_states.TrainCheckpoints, "save", noted)
  config.diffusion.first_frame_every = 0
  tiny_project.without_samples(config)
  train.train(config, str(tmp_path))
  # A state is due every second step. That of step 4 comes when it can.
  assert saved == [2, 5, 6]
  for changes, words in (
    (dict(seed=config.seed + 1), f"seed={config.seed}, and not"),
    (dict(data=dict(batch_size=4)), "data.batch_size=2, and not"),
    (dict(optim=dict(b2=0.5)), "optim.b2=0.99, and not .*another folder"),
  ):
    other = config.copy_and_resolve_references()
    other.update(changes)
    with pytest.raises(ValueError, match=words):
      train.train(other, str(tmp_path))


_MISTAKES = {
  "clip of half a chunk": (dict(data=dict(num_frames=7)), "crop the clip"),
  "small window": (dict(window=dict(local_frames=2)), "chunk_frames=3"),
  "unknown weight": (dict(diffusion=dict(loss_weight="x")), "'bell'"),
  "no training": (dict(optim=dict(steps=2)), "warmup_steps=2"),
  "unknown stage": (dict(stage="gan"), "use one of pretraining"),
  "unknown data": (dict(data=dict(kind="tape")), "data.kind='tape'"),
  "unknown schedule": (dict(optim=dict(schedule="x")), "use one of"),
  "no piece": (dict(optim=dict(accumulate=0)), "optim.accumulate=0"),
  "odd pieces": (dict(optim=dict(accumulate=4)), "multiple of 4"),
  "mesh of too many": (dict(mesh=dict(tensor=7)), "must multiply to"),
  "missing folder": (dict(networks=dict(model="no")), "is not a directory"),
  "bad window of samples": (dict(samples=dict(every=0)), "samples.every=0"),
  "unknown size": (dict(model=dict(size="huge")), "model.size='huge'"),
  "never logged": (dict(log=dict(every=0)), "log.every=0"),
  "never saved": (dict(checkpoint=dict(every=-1)), "checkpoint.every=-1"),
  "empty batch": (dict(data=dict(batch_size=0)), "batch_size=0"),
  "long clip": (dict(data=dict(num_frames=9)), "num_frames=9"),
  "bad chance": (dict(data=dict(word_dropout=2.0)), "word_dropout=2.0"),
}


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_mistake_is_refused_before_training(
  tmp_path: pathlib.Path,
  config: Any,
  monkeypatch: pytest.MonkeyPatch,
  mistake: str,
) -> None:
  changes, words = _MISTAKES[mistake]
  config.update(changes)

  def too_late(*unused):
    raise AssertionError("a model was built")

  monkeypatch.setattr(train, "load_networks", too_late)
  with pytest.raises(ValueError) as error:
    train.train(config, str(tmp_path / "run"))
  assert words in str(error.value) and "\n" not in str(error.value)
  assert not [*tmp_path.rglob("*.*")]


def test_unwritable_workdir_is_refused(
  tmp_path: pathlib.Path, config: Any
) -> None:
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="choose a folder"):
    train.train(config, str(tmp_path / "file" / "run"))


def test_run_of_another_model_is_not_continued(
  tmp_path: pathlib.Path, config: Any
) -> None:
  with train_states.TrainCheckpoints(tmp_path / "checkpoints") as saved:
    saved.save(2, train.init_state(*table.read(config))[0], None, {})
  config.model.kind = "dense"
  with pytest.raises(ValueError, match="arrays of training state"):
    train.train(config, str(tmp_path))


def test_bell_weight_scales_the_loss(config: Any, seed: int) -> None:
  rng = np.random.default_rng(seed)
  model = tiny_project.video("latent", rng)
  batch = dict(
    video=jnp.asarray(rng.integers(0, 256, (2, 6, 24, 24, 1)), jnp.uint8),
    tokens=jnp.asarray(rng.integers(0, 16, (2, 4)), jnp.int32),
  )
  key = jax.random.key(seed)

  @jax.jit
  def both(model, batch):
    arguments = regression.LossArguments(model, None, {}, batch, key)
    values = []
    for config.diffusion.loss_weight in ("none", "bell"):
      _, settings = table.read(config)
      values.append(teacher_forcing.loss(arguments, settings))
    return values

  (plain, frames), (bell, same) = both(model, batch)
  np.testing.assert_allclose(frames, same, rtol=1e-5)
  assert float(plain) == pytest.approx(float(frames.mean()), rel=1e-5)
  assert abs(float(plain) / float(bell) - 1) > 1e-4
