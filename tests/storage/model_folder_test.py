"""Tests of shipped models and of resumable training states."""

import json
import os
import pathlib
import typing

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from videomla_jax.storage import model_folder
from videomla_jax.storage import train_states


class Net(nnx.Module):
  """A module with a list, a random state and two layers of equal shape."""

  def __init__(self, *, width: int, rngs: nnx.Rngs) -> None:
    """Creates the layers."""
    self.layers = nnx.List(
      [nnx.Linear(width, width, rngs=rngs) for _ in range(2)]
    )
    self.dropout = nnx.Dropout(0.1, rngs=rngs)


def _net(seed: int, width: int = 5) -> Net:
  return Net(width=width, rngs=nnx.Rngs(seed))


def _leaves(model: Net) -> list[np.ndarray]:
  return [
    np.asarray(x) for x in jax.tree.leaves(model_folder.model_arrays(model))
  ]


@pytest.fixture
def saved(tmp_path: pathlib.Path, seed: int) -> pathlib.Path:
  path = tmp_path / "model"
  model_folder.save_model(path, _net(seed), {"width": 5})
  return path


def test_model_comes_back_bit_equal(saved: pathlib.Path, seed: int) -> None:
  params, config = model_folder.load_model_state(saved)
  model = _net(seed + 1, config["width"])
  model_folder.update_model(model, params)
  for ours, theirs in zip(_leaves(model), _leaves(_net(seed)), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_save_replaces_older_model_and_leaves_no_other_file(
  saved: pathlib.Path, seed: int
) -> None:
  model_folder.save_model(saved, _net(seed + 1), {"width": 5, "new": True})
  assert model_folder.load_model_state(saved)[1]["new"]
  assert [x.name for x in saved.parent.iterdir()] == ["model"]


def test_bfloat16_is_stored_as_float32(
  tmp_path: pathlib.Path, seed: int
) -> None:
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.normal(size=(3, 4)), jnp.bfloat16)
  model_folder.save_model(tmp_path / "m", {"a": {0: x}}, {})
  params, _ = model_folder.load_model_state(tmp_path / "m")
  assert params["a"]["0"].dtype == np.float32
  np.testing.assert_array_equal(params["a"]["0"], np.asarray(x, np.float32))


def test_unserialisable_config_leaves_nothing_behind(
  tmp_path: pathlib.Path, seed: int
) -> None:
  with pytest.raises(ValueError, match="plain JSON"):
    model_folder.save_model(tmp_path / "m", _net(seed), {"a": object()})
  assert not list(tmp_path.iterdir())


def test_any_damaged_byte_of_any_file_is_one_sentence(
  saved: pathlib.Path, seed: int
) -> None:
  rng = np.random.default_rng(seed)
  for file in [x for x in saved.rglob("*") if x.is_file()]:
    good = file.read_bytes()
    bad = bytearray(good)
    bad[int(rng.integers(len(good)))] ^= 0x80
    for content in (bytes(bad), good[:-1], b""):
      file.write_bytes(content)
      _expect_one_sentence(saved)
    file.unlink()
    _expect_one_sentence(saved)
    file.write_bytes(good)
  model_folder.load_model_state(saved)


def _expect_one_sentence(path: pathlib.Path) -> None:
  with pytest.raises(ValueError, match="restore it from git") as error:
    model_folder.load_model_state(path)
  assert "\n" not in str(error.value)
  assert str(path) in str(error.value)


@pytest.mark.parametrize(
  "name", ["../secret", "/etc/hostname", "a/../../b", "./config.json"]
)
def test_a_list_of_files_outside_is_refused(saved, name: str) -> None:
  (saved.parent / "secret").write_text("x")
  digests = json.loads((saved / model_folder.DIGESTS).read_text())
  digests[name] = "0" * 64
  (saved / model_folder.DIGESTS).write_text(json.dumps(digests))
  with pytest.raises(ValueError, match="outside of it"):
    model_folder.load_model_state(saved)


def test_a_file_that_nobody_listed_is_refused(saved) -> None:
  (saved / model_folder.PARAMS / "more").write_text("x")
  with pytest.raises(ValueError, match="'params/more' that nobody listed"):
    model_folder.load_model_state(saved)


def test_other_arrays_are_refused_before_they_are_read(
  saved, monkeypatch, seed: int
) -> None:
  monkeypatch.setattr(model_folder.orbax_local, "restore", None)
  with pytest.raises(ValueError, match="mis-shaped"):
    model_folder.load_model_state(saved, model=_net(seed, width=6))


def test_arrays_larger_than_their_files_are_refused_unread(
  tmp_path, monkeypatch
) -> None:
  arrays = {"a": np.zeros((40_000_000,), np.float32)}
  model_folder.save_model(tmp_path / "m", arrays, {})
  monkeypatch.setattr(model_folder.orbax_local, "restore", None)
  with pytest.raises(ValueError, match="160000000 bytes, which cannot come"):
    model_folder.load_model_state(tmp_path / "m")


def test_json_of_any_depth_is_one_sentence(saved) -> None:
  (saved / model_folder.CONFIG).write_text("[" * 100_000)
  _expect_one_sentence(saved)


@pytest.mark.parametrize("name", [model_folder.CONFIG, model_folder.DIGESTS])
def test_pipes_and_devices_are_no_part_of_a_model(saved, name: str) -> None:
  (saved / name).unlink()
  (saved / name).symlink_to("/dev/zero")
  _expect_one_sentence(saved)
  (saved / name).unlink()
  os.mkfifo(saved / name)
  _expect_one_sentence(saved)


def test_missing_directory_names_the_path(tmp_path: pathlib.Path) -> None:
  with pytest.raises(ValueError, match="nowhere"):
    model_folder.load_model_state(tmp_path / "nowhere")


def test_update_lists_every_misfit_at_once(seed: int) -> None:
  params = model_folder.model_arrays(_net(seed, 5))
  params["extra"] = np.zeros(2)
  del params["layers"][0]["bias"]
  params["layers"][1]["kernel"] = np.zeros((5, 6))
  with pytest.raises(ValueError) as error:
    model_folder.update_model(_net(seed, 5), params)
  for name in ("extra", "layers/0/bias", "layers/1/kernel (5, 6)"):
    assert name in str(error.value)


def _train_state(seed: int) -> dict[str, typing.Any]:
  model = _net(seed)
  params = nnx.state(model, nnx.Param)
  return {
    "model": model,
    "optimiser": optax.adamw(1e-3).init(params),
    "key": jax.random.key(seed),
    "step": jnp.int32(seed % 1000),
    "bfloat16": jnp.full((3,), 1.5, jnp.bfloat16),
  }


def _assert_equal(ours: typing.Any, theirs: typing.Any) -> None:
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    assert a.dtype == b.dtype
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("iterator", [b"\x00\xff", {"next": [1, 2]}, None])
def test_training_state_comes_back_whole(
  tmp_path: pathlib.Path, seed: int, iterator: typing.Any
) -> None:
  state = _train_state(seed)
  with train_states.TrainCheckpoints(tmp_path) as checkpoints:
    assert checkpoints.restore_latest(state) is None
    assert checkpoints.save(3, state, iterator, {"lr": 0.1})
  like = jax.eval_shape(lambda: _train_state(seed + 1))
  with train_states.TrainCheckpoints(tmp_path) as checkpoints:
    step, restored, position = checkpoints.restore_latest(like)
    assert checkpoints.config(step) == {"lr": 0.1}
  assert (step, position) == (3, iterator)
  _assert_equal(restored, state)


def test_saving_survives_donation_of_the_saved_state(
  tmp_path: pathlib.Path, seed: int
) -> None:
  x = jax.random.normal(jax.random.key(seed), (256, 1024))
  before = np.array(x)
  step = jax.jit(lambda v: v * 0 - 1, donate_argnums=0)
  with train_states.TrainCheckpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"x": x}, None, {})
    for _ in range(20):
      x = step(x)
    x.block_until_ready()
    restored = checkpoints.restore_latest({"x": x})
  np.testing.assert_array_equal(np.asarray(restored.state["x"]), before)


def test_keeps_the_newest_and_saves_at_its_interval(
  tmp_path: pathlib.Path,
) -> None:
  state = {"x": jnp.zeros(3)}
  with train_states.TrainCheckpoints(
    tmp_path, keep=2, save_every=10
  ) as checkpoints:
    saved = [s for s in range(1, 42) if checkpoints.save(s, state, None, {})]
    assert checkpoints.save(45, state, None, {}, force=True)
    assert not checkpoints.save(45, state, None, {}, force=True)
  assert saved[1:] == [10, 20, 30, 40]
  names = {x.name for x in tmp_path.iterdir() if x.name.isdigit()}
  assert names == {"40", "45"}


def _truncate_largest(folder: pathlib.Path) -> None:
  files = [x for x in folder.rglob("*") if x.is_file()]
  largest = max(files, key=lambda x: x.stat().st_size)
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def _save_steps(folder: pathlib.Path, *steps: int) -> dict[str, jax.Array]:
  with train_states.TrainCheckpoints(folder) as checkpoints:
    for step in steps:
      state = {"x": jnp.full((64, 64), float(step)), "y": jnp.arange(step)[:1]}
      assert checkpoints.save(step, state, {"step": step}, {})
  return state


def test_broken_newest_state_falls_back_and_can_be_written_again(
  tmp_path: pathlib.Path,
) -> None:
  state = _save_steps(tmp_path, 1, 2, 3)
  _truncate_largest(tmp_path / "3" / "state")
  with train_states.TrainCheckpoints(tmp_path) as checkpoints:
    step, restored, position = checkpoints.restore_latest(state)
    assert (step, position) == (2, {"step": 2})
    assert float(restored["x"][0, 0]) == 2.0
    assert checkpoints.save(3, state, {"step": 3}, {})
    assert checkpoints.restore_latest(state).step == 3
  assert (tmp_path / "broken-3").is_dir()


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt"])
def test_lost_file_of_newest_state_falls_back(
  tmp_path: pathlib.Path, name: str
) -> None:
  state = _save_steps(tmp_path, 1, 2)
  for file in (tmp_path / "2" / "state").rglob(name):
    file.unlink()
  with train_states.TrainCheckpoints(tmp_path) as checkpoints:
    assert checkpoints.restore_latest(state).step == 1


def test_all_states_broken_is_an_error_and_touches_nothing(
  tmp_path: pathlib.Path,
) -> None:
  state = _save_steps(tmp_path, 1, 2)
  for step in "12":
    _truncate_largest(tmp_path / step / "state")
  with train_states.TrainCheckpoints(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match="no readable training state"):
      checkpoints.restore_latest(state)
  assert (tmp_path / "1").is_dir() and (tmp_path / "2").is_dir()


def test_other_architecture_is_an_error_and_not_a_fallback(
  tmp_path: pathlib.Path,
) -> None:
  _save_steps(tmp_path, 1, 2)
  like = {"x": jnp.zeros((64, 32)), "z": jnp.zeros(1)}
  with train_states.TrainCheckpoints(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match=r"missing: \[z\].*unknown: \[y\]"):
      checkpoints.restore_latest(like)
  assert (tmp_path / "2").is_dir()


def test_saved_model_is_compact(saved: pathlib.Path) -> None:
  files = [x for x in saved.rglob("*") if x.is_file()]
  assert len(files) < 20
  assert json.loads((saved / "config.json").read_text()) == {"width": 5}
