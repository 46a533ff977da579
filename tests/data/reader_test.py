"""Tests of reading prepared clips: order, processes, resume, dropout, errors."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_project
from tests import tiny_videos
from videomla_jax import prepare
from videomla_jax.data import dataset
from videomla_jax.data import example_shape
from videomla_jax.data import reader
from videomla_jax.data import record_files

TOKENS, WIDTH = 20, 32
SHAPES = example_shape.ExampleShape(latents=(2, 4, 4, 4), text=(TOKENS, WIDTH))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("latents")
  videos = tiny_videos.write(root / "videos", 3)
  prepare.prepare(tiny_videos.config(videos, root / "data", shard_size=2))
  return root / "data"


def load(folder, **changes):
  arguments = {"batch_size": 4, "shapes": SHAPES, "seed": 0}
  return reader.make_loader(folder, **(arguments | changes))


def take(loader, count):
  return list(itertools.islice(iter(loader), count))


def assert_same(ones, others):
  for one, other in zip(ones, others, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


def test_a_batch_is_what_was_stored(folder):
  (batch,) = load(folder, batch_size=6, num_epochs=1)
  stored = reader.open_records(
    folder,
    "train",
    example_shape.ExampleShape(latents=(3, 4, 4, 4), text=(TOKENS, WIDTH)),
  )
  assert batch["latents"].dtype == np.float16
  assert batch["text"].dtype == jnp.bfloat16
  assert batch["text"].shape == (6, TOKENS, WIDTH)
  by_clip = {r["latents"][:2].tobytes(): r["text"] for r in stored}
  assert len(by_clip) == 6
  for clip, text in zip(batch["latents"], batch["text"], strict=True):
    rows = by_clip.pop(clip.tobytes())
    np.testing.assert_array_equal(record_files.pack(text[: len(rows)]), rows)
    assert not np.any(text[len(rows) :])
  assert not by_clip
  empty = dataset.read_null_text(folder)
  np.testing.assert_array_equal(
    record_files.pack(batch["negative"][: len(empty)]), empty
  )


def test_processes_share_the_batches_of_one(folder, seed):
  whole = take(load(folder, seed=seed), 7)
  parts = [
    take(load(folder, seed=seed, process_index=i, process_count=2), 7)
    for i in range(2)
  ]
  joined = [
    {n: np.concatenate([a[n], b[n]]) for n in ("latents", "text")}
    for a, b in zip(*parts, strict=True)
  ]
  assert_same(joined, [{n: b[n] for n in ("latents", "text")} for b in whole])


def test_resuming_equals_the_uninterrupted_run(folder, seed):
  stop = int(np.random.default_rng(seed).integers(12))
  options = dict(seed=seed, prompt_dropout=0.5)
  whole = take(load(folder, **options), 12)
  first = iter(load(folder, **options))
  head = list(itertools.islice(first, stop))
  state = json.loads(json.dumps(first.get_state()))
  second = iter(load(folder, **options))
  second.set_state(state)
  assert_same(head + list(itertools.islice(second, 12 - stop)), whole)


def test_dropped_prompts_become_the_negative_one(folder, seed):
  (batch,) = load(
    folder, seed=seed, batch_size=6, num_epochs=1, prompt_dropout=1.0
  )
  assert all(np.array_equal(t, batch["negative"]) for t in batch["text"])
  batches = take(load(folder, seed=seed, prompt_dropout=0.5), 50)
  dropped = [
    np.array_equal(t, b["negative"]) for b in batches for t in b["text"]
  ]
  assert 0.35 < np.mean(dropped) < 0.65  # 4 standard deviations


def test_prompts_alone_are_read_without_clips(folder):
  shapes = example_shape.ExampleShape(latents=None, text=(TOKENS, WIDTH))
  batch = next(iter(load(folder, shapes=shapes)))
  assert batch.keys() == {"text", "negative"}


@pytest.mark.parametrize(
  ("shapes", "message"),
  [
    (((4, 4, 4, 4), (TOKENS, WIDTH)), "data.num_frames=4; use fewer"),
    (((2, 4, 5, 4), (TOKENS, WIDTH)), "data.latent_shape="),
    (((2, 4, 4, 4), (TOKENS, 64)), "data.text_shape="),
    (((2, 4, 4, 4), (2, WIDTH)), "data.text_shape="),
  ],
)
def test_data_that_do_not_fit_are_refused(folder, shapes, message):
  wanted = example_shape.ExampleShape(latents=shapes[0], text=shapes[1])
  with pytest.raises(ValueError, match=message):
    load(folder, shapes=wanted)


def test_bad_arguments_are_refused(folder, tmp_path):
  for changes, message in (
    (dict(split="test"), "no clips in split 'test'"),
    (dict(batch_size=7, num_epochs=1), "must not exceed the 6 clips"),
    (dict(batch_size=0), "batch_size=0"),
    (dict(seed=-1), "seed=-1"),
    (dict(prompt_dropout=2.0), "prompt_dropout=2.0"),
    (dict(process_count=3), "process_count=3"),
  ):
    with pytest.raises(ValueError, match=message):
      load(folder, **changes)
  with pytest.raises(ValueError, match="videomla_jax.prepare"):
    load(tmp_path)
  with pytest.raises(ValueError, match="data.root=''"):
    load("")


def test_prompts_are_not_enough_for_clips(tmp_path):
  (tmp_path / "p.txt").write_text("a cat\n")
  config = tiny_project.config("prepare", "tiny")
  config.update(
    prompts=str(tmp_path / "p.txt"), output=str(tmp_path), test_fraction=0.0
  )
  prepare.prepare(config)
  with pytest.raises(ValueError, match="has prompts and no clips"):
    load(tmp_path)
  shapes = example_shape.ExampleShape(latents=None, text=(TOKENS, WIDTH))
  assert take(load(tmp_path, shapes=shapes, batch_size=1), 2)
