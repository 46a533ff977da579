"""Tests of the loader: determinism, resume, shards, dropout and errors."""

import itertools
import json
import os

import numpy as np
import pytest

from videomla_jax.small_world import builder
from videomla_jax.small_world import loader as loader_lib
from videomla_jax.small_world import moving_digits
from videomla_jax.small_world import prompts

CONFIG = moving_digits.MovingDigitsConfig(
  num_clips=96, num_test_clips=12, num_frames=10
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  builder.open_split(folder, split="train", config=CONFIG)
  return folder


def load(folder, **changes):
  arguments = {"batch_size": 8, "num_frames": 6, "seed": 0, "config": CONFIG}
  return loader_lib.make_loader(folder, **{**arguments, **changes})


def assert_batches_equal(ones, others):
  for one, other in zip(ones, others, strict=True):
    for name in ("video", "tokens"):
      np.testing.assert_array_equal(one[name], other[name])


def clip_keys(batches):
  return [video.tobytes() for b in batches for video in b["video"]]


def test_batches_have_the_promised_shapes_and_types(data_dir):
  batch = next(iter(load(data_dir)))
  assert set(batch) == {"video", "tokens"}
  assert batch["video"].shape == (8, 6, 24, 24, 1)
  assert batch["video"].dtype == np.uint8
  assert batch["tokens"].shape == (8, 4)
  assert batch["tokens"].dtype == np.int32


def test_resuming_equals_the_uninterrupted_run(data_dir, seed):
  rng = np.random.default_rng(seed)
  num_steps, stop = 30, int(rng.integers(30))  # 12 steps are an epoch
  whole = list(itertools.islice(iter(load(data_dir, seed=seed)), num_steps))
  first = iter(load(data_dir, seed=seed))
  head = list(itertools.islice(first, stop))
  state = json.loads(json.dumps(first.get_state()))
  second = iter(load(data_dir, seed=seed))
  second.set_state(state)
  tail = list(itertools.islice(second, num_steps - stop))
  assert_batches_equal(head + tail, whole)


def test_an_iterator_in_use_can_be_set_back(data_dir, seed):
  iterator = iter(load(data_dir, seed=seed))
  next(iterator)
  state = iterator.get_state()
  before = list(itertools.islice(iterator, 5))
  iterator.set_state(state)
  assert_batches_equal(before, itertools.islice(iterator, 5))


def test_seeds_decide_the_batches(data_dir, seed):
  one, same, other = (
    list(itertools.islice(iter(load(data_dir, seed=s)), 3))
    for s in (seed, seed, seed ^ 1)
  )
  assert_batches_equal(one, same)
  assert clip_keys(one) != clip_keys(other)


def test_shards_are_disjoint_and_make_up_the_global_batch(data_dir, seed):
  changes = {"seed": seed, "num_frames": 10, "num_epochs": 1}
  whole = list(load(data_dir, **changes))
  shards = [
    list(load(data_dir, process_index=i, process_count=2, **changes))
    for i in (0, 1)
  ]
  keys = [clip_keys(shard) for shard in shards]
  assert len(keys[0]) == len(keys[1]) == 48
  assert sorted(keys[0] + keys[1]) == sorted(clip_keys(whole))
  for batch, *parts in zip(whole, *shards, strict=True):
    assert clip_keys([batch]) == clip_keys(parts)  # in its order, too


def test_two_processes_never_read_the_same_record(data_dir, monkeypatch):
  reads = []
  original = builder.open_split

  class Spy:
    def __init__(self, source):
      self.source, self.indices = source, []
      reads.append(self.indices)

    def __len__(self):
      return len(self.source)

    def __getitem__(self, index):
      self.indices.append(int(index))
      return self.source[index]

  monkeypatch.setattr(
    builder, "open_split", lambda *a, **k: Spy(original(*a, **k))
  )
  for index in (0, 1):
    list(load(data_dir, process_index=index, process_count=2, num_epochs=1))
  assert not set(reads[0]) & set(reads[1])
  assert sorted(reads[0] + reads[1]) == list(range(96))


def test_state_restores_on_another_number_of_processes(data_dir, seed):
  single = iter(load(data_dir, seed=seed))
  list(itertools.islice(single, 7))
  state = single.get_state()
  parts = []
  for index in range(4):
    part = iter(load(data_dir, seed=seed, process_index=index, process_count=4))
    part.set_state(state)
    parts.append(next(part))
  assert clip_keys([next(single)]) == clip_keys(parts)


def test_an_epoch_reads_every_clip_once_and_the_next_in_another_order(data_dir):
  batches = list(load(data_dir, num_frames=10, num_epochs=2))
  first, second = clip_keys(batches[:12]), clip_keys(batches[12:])
  source = builder.open_split(data_dir, split="train", config=CONFIG)
  assert sorted(first) == sorted(r["video"].tobytes() for r in source)
  assert sorted(second) == sorted(first)
  assert second != first


def test_crops_are_windows_of_stored_clips_at_every_offset(data_dir):
  source = builder.open_split(data_dir, split="train", config=CONFIG)
  windows = {}
  for record in source:
    for offset in range(5):
      key = record["video"][offset : offset + 6].tobytes()
      windows.setdefault(key, set()).add(offset)
  keys = clip_keys(load(data_dir, num_epochs=2))
  assert all(key in windows for key in keys)
  assert set.union(*(windows[key] for key in keys)) == set(range(5))


def test_undropped_tokens_describe_the_video(data_dir):
  source = builder.open_split(data_dir, split="train", config=CONFIG)
  truth = {r["video"].tobytes(): r["prompt"].decode() for r in source}
  loader = load(
    data_dir, num_frames=10, num_epochs=1, prompt_dropout=0.0, word_dropout=0.0
  )
  for batch in loader:
    texts = [truth[video.tobytes()] for video in batch["video"]]
    np.testing.assert_array_equal(
      batch["tokens"], prompts.tokenize_batch(texts)
    )


@pytest.mark.parametrize(("prompt_dropout", "word_dropout"), [(0.2, 0.1)])
def test_dropout_has_the_asked_frequency(
  data_dir, seed, prompt_dropout, word_dropout
):
  loader = load(
    data_dir,
    seed=seed,
    num_epochs=40,
    num_frames=1,
    batch_size=96,
    prompt_dropout=prompt_dropout,
    word_dropout=word_dropout,
  )
  tokens = np.concatenate([batch["tokens"] for batch in loader])
  dropped = tokens[:, :3] == prompts.PADDING
  null = prompt_dropout + (1 - prompt_dropout) * word_dropout**3
  single = prompt_dropout + (1 - prompt_dropout) * word_dropout
  # 3840 draws: five standard errors fail once in a million runs.
  for rate, expected in [
    (dropped.all(axis=1).mean(), null),
    *((dropped[:, kind].mean(), single) for kind in range(3)),
  ]:
    error = np.sqrt(expected * (1 - expected) / len(tokens))
    assert abs(rate - expected) < 5 * error


def test_certain_prompt_dropout_gives_null_tokens(data_dir):
  batch = next(iter(load(data_dir, prompt_dropout=1.0)))
  np.testing.assert_array_equal(
    batch["tokens"], np.broadcast_to(prompts.NULL_TOKENS, (8, 4))
  )


def test_test_split_has_held_out_prompts(data_dir):
  loader = load(
    data_dir,
    split="test",
    num_epochs=1,
    batch_size=4,
    prompt_dropout=0.0,
    word_dropout=0.0,
  )
  held_out = {
    tuple(prompts.tokenize(p.text())) for p in prompts.held_out_prompts()
  }
  tokens = [tuple(row) for batch in loader for row in batch["tokens"]]
  assert len(tokens) == 12
  assert set(tokens) <= held_out


def test_missing_data_is_an_error_unless_it_may_be_built(tmp_path):
  with pytest.raises(ValueError, match="pass build=True"):
    load(tmp_path, build=False)
  assert not os.listdir(tmp_path)


def test_unwritable_folder_is_an_error(tmp_path):
  blocked = tmp_path / "file"
  blocked.write_text("not a folder")
  with pytest.raises(ValueError, match="cannot be written"):
    load(blocked)


@pytest.mark.parametrize("damage", ["missing shard", "cut shard", "no info"])
def test_damaged_data_is_an_error_that_says_to_delete(tmp_path, damage):
  config = moving_digits.MovingDigitsConfig(
    num_clips=8, num_test_clips=1, num_frames=6
  )
  load(tmp_path, config=config)
  name = "dataset_info.json" if damage == "no info" else "*train.array_record*"
  (file,) = tmp_path.glob(f"moving_digits/*/*/{name}")
  if damage == "cut shard":
    os.truncate(file, 1000)
  else:
    file.unlink()
  with pytest.raises(ValueError, match="damaged.*delete that folder"):
    load(tmp_path, config=config)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"batch_size": 0}, "batch_size=0"),
    ({"num_frames": 0}, "num_frames=0"),
    ({"num_frames": 11}, "num_frames=11 must be from 1 to the 10"),
    ({"seed": -1}, "seed=-1"),
    ({"num_epochs": 0}, "num_epochs=0"),
    ({"prompt_dropout": 1.5}, "prompt_dropout=1.5"),
    ({"word_dropout": -0.1}, "word_dropout=-0.1"),
    ({"word_dropout": float("nan")}, "word_dropout=nan"),
    ({"process_count": 3}, "process_count=3 must divide"),
    ({"process_count": 0}, "process_count=0"),
    ({"process_count": 2, "process_index": 2}, "process_index=2"),
    ({"split": "valid"}, "split='valid'"),
    ({"batch_size": 200, "num_epochs": 2}, "batch_size=200 must not exceed"),
  ],
)
def test_bad_arguments_are_errors_in_one_sentence(data_dir, changes, message):
  with pytest.raises(ValueError, match=message) as error:
    load(data_dir, **changes)
  assert "\n" not in str(error.value)
