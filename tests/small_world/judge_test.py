"""Tests of the judge: accuracy, invariances, cache."""

import numpy as np
import pytest

from videomla_jax.small_world import judge as judge_lib
from videomla_jax.small_world import judge_frames
from videomla_jax.small_world import judge_network
from videomla_jax.small_world import world


def test_judge_knows_digits_and_contents_of_held_out_sprites(judge_and_report):
  _, report = judge_and_report
  print(report.text())
  assert report.identity > 0.82  # the full recipe reaches 0.97
  assert report.identity_clean > 0.82
  assert report.content > 0.9
  assert report.whole_clean > 0.9
  np.testing.assert_allclose(np.sum(report.confusion, axis=1), 1.0)
  assert set(report.kinds) == set(judge_frames.KIND_NAMES)


def test_judge_says_the_same_at_every_lattice_position(judge, seed):
  rng = np.random.default_rng(seed)
  sprites, _ = world.load_sprites("test")
  chosen = sprites[rng.choice(len(sprites), 20, replace=False)]
  frames, places = judge_frames.clean_frames(chosen)
  judged = judge_network.judge_frames(
    judge, frames.reshape(20, places, 24, 24, 1)
  )
  assert (judged.identity == judged.identity[:, :1]).all()
  assert np.ptp(judged.identity_probability, axis=1).max() < 1e-4


def test_judge_does_not_depend_on_the_batch(judge, seed, monkeypatch):
  rng = np.random.default_rng(seed)
  videos = rng.uniform(size=(3, 7, 24, 24, 1)).astype(np.float32)
  whole = judge_network.judge_frames(judge, videos)
  monkeypatch.setattr(judge_network, "_BATCH", 8)
  parts = judge_network.judge_frames(judge, videos)
  np.testing.assert_array_equal(whole.identity, parts.identity)
  np.testing.assert_array_equal(whole.content, parts.content)
  np.testing.assert_allclose(
    whole.identity_probability, parts.identity_probability, atol=1e-5
  )


def test_judge_calls_blank_frames_fragments(judge):
  judged = judge_network.judge_frames(
    judge, np.zeros((1, 2, 24, 24, 1), np.float32)
  )
  assert (judged.content == judge_frames.FRAGMENT).all()


def test_cache_returns_the_same_judge_without_training(
  judge_and_report, tmp_path, monkeypatch, seed
):
  calls = _count_trainings(monkeypatch, judge_and_report)
  path = tmp_path / "new" / "judge.npz"
  judge_lib.load_or_train_judge(path)
  loaded, report = judge_lib.load_or_train_judge(path)
  assert len(calls) == 1
  assert report == judge_and_report[1]
  frames = np.random.default_rng(seed).uniform(size=(1, 9, 24, 24, 1))
  frames = frames.astype(np.float32)
  first = judge_network.judge_frames(judge_and_report[0], frames)
  second = judge_network.judge_frames(loaded, frames)
  for a, b in zip(first, second):
    np.testing.assert_array_equal(a, b)
  assert [p.name for p in path.parent.iterdir()] == ["judge.npz"]


@pytest.mark.parametrize("change", ["recipe", "seed", "version"])
def test_cache_of_another_judge_is_replaced(
  judge_and_report, tmp_path, monkeypatch, change
):
  calls = _count_trainings(monkeypatch, judge_and_report)
  path = tmp_path / "judge.npz"
  judge_lib.load_or_train_judge(path)
  arguments = {}
  if change == "recipe":
    arguments["recipe"] = judge_lib.JudgeRecipe(num_frames=5000)
  elif change == "seed":
    arguments["seed"] = 1
  else:
    monkeypatch.setattr(judge_lib, "_VERSION", -1)
  judge_lib.load_or_train_judge(path, **arguments)
  judge_lib.load_or_train_judge(path, **arguments)
  assert len(calls) == 2


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_damaged_cache_is_replaced(
  judge_and_report, tmp_path, monkeypatch, keep
):
  calls = _count_trainings(monkeypatch, judge_and_report)
  path = tmp_path / "judge.npz"
  judge_lib.load_or_train_judge(path)
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * keep) if keep < 1 else keep])
  judge_lib.load_or_train_judge(path)
  assert len(calls) == 2
  assert path.read_bytes()[:4] == data[:4]


def test_unwritable_cache_still_gives_a_judge(
  judge_and_report, tmp_path, monkeypatch
):
  _count_trainings(monkeypatch, judge_and_report)
  (tmp_path / "file").write_text("in the way")
  path = tmp_path / "file" / "judge.npz"
  judge, _ = judge_lib.load_or_train_judge(path)
  assert judge is judge_and_report[0]
  assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_recipe_rejects_a_batch_larger_than_the_data():
  with pytest.raises(ValueError, match="batch_size=9 must be from 1 to"):
    judge_lib.JudgeRecipe(num_frames=8, batch_size=9)


def _count_trainings(monkeypatch, judge_and_report) -> list[int]:
  """Replaces training by a counter."""
  calls = []

  def train(seed, *, recipe):
    calls.append(seed)
    return judge_and_report

  monkeypatch.setattr(judge_lib, "train_judge", train)
  return calls
