"""Tests that every change of a training state's files is noticed."""

import os
import pathlib
import random
import shutil
import time

import pytest

from tests import damage
from videomla_jax.storage import state_damage
from videomla_jax.storage import state_digests
from videomla_jax.storage import train_states


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("states") / "pristine"
  damage.save(folder)
  return folder


def test_four_hundred_flipped_bits_are_noticed(pristine, tmp_path, seed):
  # `python -m tests.damage` restores after each of them.
  rng, newest = random.Random(seed), tmp_path / "6"
  shutil.copytree(pristine / "6", newest)
  assert state_damage.of(newest, 6) == ""
  before = {x: x.read_bytes() for x in damage.files(newest)}
  for _ in range(400):
    name = damage.flip(newest, rng)
    reason = state_damage.of(newest, 6)
    assert name in reason, (name, reason)
    for path, data in before.items():
      if path.name == name:
        path.write_bytes(data)
  assert state_damage.of(newest, 6) == ""


@pytest.mark.parametrize("kind", damage.CHANGES)
def test_a_state_whose_files_changed_gives_way_to_the_one_before(
  pristine, tmp_path, seed, kind, caplog
):
  step = damage.trial(pristine, tmp_path / "damaged", kind, random.Random(seed))
  broken = {x.name for x in (tmp_path / "damaged").glob("broken-*")}
  assert len(broken) >= (step > 0) and "is damaged" in caplog.text


def test_every_file_is_listed_with_the_step(pristine):
  for step in damage.STEPS:
    folder = pristine / str(step)
    assert [*state_digests.problems(folder, step)] == []
    ((name, why),) = state_digests.problems(folder, step + 1)
    assert name == state_digests.FILE and f"step {step} and not" in why


def test_hidden_files_of_the_system_do_no_harm(pristine, tmp_path):
  shutil.copytree(pristine, tmp_path / "states")
  (tmp_path / "states" / "6" / "state" / ".nfs00042").write_text("x")
  assert damage.restore(tmp_path / "states") == 6


def test_what_killed_processes_left_goes(pristine, tmp_path):
  folder = tmp_path / "states"
  shutil.copytree(pristine, folder)
  left = ("8.orbax-checkpoint-tmp", "8.orbax-checkpoint-tmp-listed")
  for name in left:
    shutil.copytree(folder / "6", folder / name)
  with train_states.TrainCheckpoints(folder, keep=3) as saved:
    # Orbax removes what it knows in the background.
    deadline = time.monotonic() + 60
    while any((folder / name).exists() for name in left):
      assert time.monotonic() < deadline
    # It may still be there when the same step is saved again.
    shutil.copytree(folder / "6", folder / left[1], dirs_exist_ok=True)
    saved.save(8, damage.state(8), {"next_index": 8}, {})
  assert {x.name for x in folder.iterdir()} == {"4", "6", "8"}
  assert damage.restore(folder) == 8


def test_a_state_of_an_earlier_version_is_taken_with_a_warning(
  pristine, tmp_path, caplog, monkeypatch
):
  folder = tmp_path / "states"
  monkeypatch.setattr(state_damage, "LISTED", "other")
  damage.save(folder)
  monkeypatch.undo()
  for step in damage.STEPS:
    (folder / str(step) / state_digests.FILE).unlink()
  assert damage.restore(folder) == 6
  assert "has no digests" in caplog.text and "cannot be checked" in caplog.text
  # Numbers that do not fit together are noticed all the same.
  damage.CHANGES["the folder has another number"](
    folder / "6", random.Random(0)
  )
  assert damage.restore(folder) == 4


def test_files_that_may_not_be_opened_are_no_damage(
  pristine, tmp_path, monkeypatch
):
  folder = tmp_path / "states"
  shutil.copytree(pristine, folder)

  def refuse(path):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(state_digests, "sha256", refuse)
  with train_states.TrainCheckpoints(folder, keep=3) as saved:
    with pytest.raises(ValueError, match="cannot be opened .Permission.*noth"):
      saved.restore_latest(damage.state(0))
  assert {x.name for x in folder.iterdir()} == {"2", "4", "6"}


def test_pipes_in_a_state_are_found_and_not_opened(pristine, tmp_path, seed):
  newest = tmp_path / "6"
  shutil.copytree(pristine / "6", newest)
  path = random.Random(seed).choice(
    [x for x in damage.files(newest) if x.name != state_digests.FILE]
  )
  path.unlink()
  os.mkfifo(path)
  assert f"{path.name} is no ordinary file" in state_damage.of(newest, 6)
  if path.match(state_damage.META):
    return  # Nothing tells any more that there was a list.
  (newest / state_digests.FILE).unlink()
  os.mkfifo(newest / state_digests.FILE)
  assert "cannot be read" in state_damage.of(newest, 6)


def test_a_list_of_other_things_cannot_be_read(pristine, tmp_path):
  shutil.copytree(pristine / "6", tmp_path / "6")
  for about in ({"a": ["3", "x"]}, {"a": [1, 2]}, {"a": [1]}):
    text = state_digests._text(6, about)
    (tmp_path / "6" / state_digests.FILE).write_bytes(text)
    assert "sha256.json" in state_damage.of(tmp_path / "6", 6)


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, ValueError])
def test_other_failures_of_a_whole_state_set_nothing_aside(
  pristine, tmp_path, monkeypatch, kind
):
  folder = tmp_path / "states"
  shutil.copytree(pristine, folder)

  def fail(*unused):
    raise kind("Unable to initialize backend 'cuda'")

  monkeypatch.setattr(train_states.TrainCheckpoints, "_read", fail)
  with train_states.TrainCheckpoints(folder, keep=3) as saved:
    with pytest.raises(kind, match="cuda"):
      saved.restore_latest(damage.state(0))
  assert {x.name for x in folder.iterdir()} == {"2", "4", "6"}
