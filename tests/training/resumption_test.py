"""Tests of what may change when a run goes on, and what fits together."""

import copy
import json

import jax.numpy as jnp
import pytest

from tests import damage
from tests import tiny_project
from videomla_jax.storage import model_folder
from videomla_jax.storage import train_states
from videomla_jax.training import resumption
from videomla_jax.training.stages import table


@pytest.fixture
def record(tmp_path):
  """The config of a run that has saved a state."""
  record = json.loads(tiny_project.config("dmd", "small,runlocal").to_json())
  record[resumption.IDENTITY] = {"networks.teacher": "0a"}
  with train_states.TrainCheckpoints(tmp_path) as saved:
    saved.save(2, damage.state(2), {"next_index": 2}, record)
  return record


def _check(folder, record) -> None:
  with train_states.TrainCheckpoints(folder) as saved:
    resumption.check(saved, record, workdir="runs/x")


def _changed(record, name, value):
  other = copy.deepcopy(record)
  *groups, key = name.split(".")
  inner = other
  for group in groups:
    inner = inner[group]
  assert key in inner and inner[key] != value, name
  inner[key] = value
  return other


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("stage", "consistency"),
    ("seed", 1),
    ("model.kind", "dense"),
    ("data.batch_size", 64),
    ("data.num_frames", 24),
    ("data.prompt_dropout", 0.5),
    ("window.local_frames", 9),
    ("diffusion.shift", 5.0),
    ("optim.b2", 0.5),
    ("optim.eps", 1e-6),
    ("optim.ema_decay", 0.5),
    ("optim.accumulate", 2),
    ("optim.critic_updates", 3),
    ("rollout.num_frames", 15),
  ],
)
def test_what_makes_another_run_is_refused(tmp_path, record, name, value):
  other = _changed(record, name, value)
  with pytest.raises(ValueError) as error:
    _check(tmp_path, other)
  text = str(error.value)
  assert f"{name}={value!r}" in text and "runs/x" in text
  assert "another folder" in text and "\n" not in text


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("optim.steps", 99),
    ("optim.learning_rate", 1e-9),
    ("optim.critic_learning_rate", 1e-9),
    ("log.every", 77),
    ("checkpoint.every", 77),
    ("samples.videos", 3),
    ("eval.batches", 3),
    ("eval.every", 3),
    ("mesh.data", 4),
    ("data.root", "elsewhere"),
  ],
)
def test_what_may_change_is_listed(tmp_path, record, name, value, caplog):
  _check(tmp_path, _changed(record, name, value))
  assert f"{name}: " in caplog.text and f"-> {value!r}" in caplog.text


def test_the_same_config_says_nothing(tmp_path, record, caplog):
  caplog.clear()
  _check(tmp_path, json.loads(json.dumps(record)))
  # A key of another version cannot be compared.
  _check(tmp_path, record | {"new": {"key": 1}})
  assert "changes" not in caplog.text


def test_keys_that_nothing_reads_are_not_compared(tmp_path, record) -> None:
  # A run of a version that took any value of them goes on.
  other = _changed(record, "optim.ema_warmup", True)
  with pytest.raises(ValueError, match="optim.ema_warmup"):
    _check(tmp_path, other)
  with train_states.TrainCheckpoints(tmp_path) as saved:
    resumption.check(
      saved, other, workdir="runs/x", unread={"optim.ema_warmup"}
    )


def test_other_weights_at_the_same_path_are_refused(tmp_path, record):
  other = copy.deepcopy(record)
  other[resumption.IDENTITY]["networks.teacher"] = "0b"
  with pytest.raises(ValueError, match="identity.networks.teacher='0b'"):
    _check(tmp_path, other)


def test_identity_is_of_the_weights_and_not_of_their_path(tmp_path, seed):
  config = tiny_project.config("dmd", "small,runlocal")
  weights = {"x": jnp.full(3, float(seed % 1000))}
  for name, value in (
    ("a", weights),
    ("b", weights),
    ("c", {"x": jnp.ones(3)}),
  ):
    model_folder.save_model(tmp_path / name, value, {"name": "x"})
  found = []
  for name in "abc":
    with config.unlocked():
      for role in config.networks:
        config.networks[role] = str(tmp_path / name)
    stage, settings = table.read(config)
    found.append(resumption.identity(stage, settings))
  assert found[1].keys() == {"networks.real_score"} or found[1]
  assert found[0] != found[2]
  assert all("networks.model" not in x for x in found)


def test_a_damaged_config_is_left_to_the_restore(tmp_path, record):
  with train_states.TrainCheckpoints(tmp_path) as saved:
    saved.save(4, damage.state(4), {"next_index": 4}, record, force=True)
  path = tmp_path / "4" / "meta" / "metadata"
  # A flipped bit must not look like a change of the user's.
  path.write_text(path.read_text().replace('"seed": 0', '"seed": 8'))
  assert '"seed": 8' in path.read_text()
  _check(tmp_path, record)


@pytest.mark.parametrize(
  ("step", "position", "words"),
  [
    (4, {"next_index": 4}, ""),
    (4, {"next_index": 5}, "data are those of step 5"),
    (6, {"next_index": 4}, "arrays are those of step 6"),
    (4, b"bytes", ""),
    (4, None, ""),
  ],
)
def test_step_and_position_must_be_those_of_the_folder(step, position, words):
  restored = train_states.Restored(
    step=4, state=damage.state(step), iterator_state=position
  )
  found = resumption.disagreement(restored)
  assert words in found and bool(words) == bool(found)
