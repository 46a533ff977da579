"""The data set holds clips with their captions and truth, and is read back."""

import itertools

import jax
import numpy as np
import pytest

from videomla_jax.small_world import builder
from videomla_jax.small_world import loader as loader_lib
from videomla_jax.small_world import world as small_world
from videomla_jax.small_world.colour import dataset
from videomla_jax.small_world.colour import prompts
from videomla_jax.small_world.colour import words
from videomla_jax.small_world.colour import world

CONFIG = dataset.ColourWorldConfig(
  num_clips=20, num_test_clips=6, num_frames=9, seed=5
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  builder.open_split(folder, split="train", config=CONFIG)
  return folder


def records(folder, split):
  return builder.open_split(folder, split=split, config=CONFIG, build=False)


def load(folder, **changes):
  arguments = {"batch_size": 4, "num_frames": 6, "seed": 0, "config": CONFIG}
  return loader_lib.make_loader(folder, **{**arguments, **changes})


@pytest.mark.parametrize("split", small_world.SPLITS)
def test_records_are_the_clips_of_their_seed(data_dir, split):
  source = records(data_dir, split)
  number = {"train": 20, "test": 6}[split]
  assert len(source) == number
  key = jax.random.fold_in(jax.random.key(5), small_world.SPLITS.index(split))
  sample = jax.jit(
    world.sample, static_argnames=("size", "num_frames", "split")
  )
  clips = jax.device_get(sample(key, size=number, num_frames=9, split=split))
  place = {video.tobytes(): i for i, video in enumerate(clips.video)}
  found = [place[record["video"].tobytes()] for record in source]
  assert sorted(found) == [*range(number)]
  for i, record in zip(found, source, strict=True):
    said = words.prompt_of(clips.choices[i])
    assert record["prompt"].decode() == said.text()
    assert set(said.pairs()) <= set(prompts.split_pairs(split))
    for name, values in clips.truth._asdict().items():
      np.testing.assert_array_equal(record[name], values[i])


def test_rebuilding_gives_equal_records(data_dir, tmp_path):
  builder.open_split(tmp_path, split="train", config=CONFIG)
  for split in small_world.SPLITS:
    pairs = zip(records(data_dir, split), records(tmp_path, split), strict=True)
    for one, two in pairs:
      assert one.keys() == two.keys()
      for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_batches_begin_with_the_first_frame_and_have_their_caption(data_dir):
  source = {
    record["video"][:6].tobytes(): record["prompt"].decode()
    for record in records(data_dir, "train")
  }
  loader = load(data_dir, num_epochs=1, prompt_dropout=0.0, word_dropout=0.0)
  count = 0
  for batch in loader:
    assert batch["video"].shape == (4, 6, 64, 64, 3)
    assert batch["tokens"].shape == (4, words.NUM_TOKENS)
    assert batch["tokens"].dtype == np.int32
    for video, tokens in zip(batch["video"], batch["tokens"], strict=True):
      text = source[video.tobytes()]
      np.testing.assert_array_equal(tokens, words.tokenize(text))
      count += 1
  assert count == 20


def test_prompts_are_dropped_and_batches_resume(data_dir, seed):
  loader = load(data_dir, seed=seed, prompt_dropout=1.0)
  assert not next(iter(loader))["tokens"].any()
  whole = [*itertools.islice(iter(load(data_dir, seed=seed)), 9)]
  first, second = (iter(load(data_dir, seed=seed)) for _ in range(2))
  list(itertools.islice(first, 4))
  second.set_state(first.get_state())
  for one, two in zip(whole[4:], second):
    np.testing.assert_array_equal(one["video"], two["video"])
    np.testing.assert_array_equal(one["tokens"], two["tokens"])


def test_default_config_has_the_clips_of_training():
  assert dataset.DEFAULT_CONFIG.num_frames == 81
  assert dataset.DEFAULT_CONFIG.name in [
    c.name for c in dataset.ColourWorld.BUILDER_CONFIGS
  ]


@pytest.mark.parametrize(
  "field", ["num_clips", "num_test_clips", "num_frames", "seed"]
)
def test_config_rejects_nonsense(field):
  with pytest.raises(ValueError, match=f"{field}=-1"):
    dataset.ColourWorldConfig(**{field: -1})
