"""Tests of videos that stage 3 goes on with from step to step."""

import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from tests import tiny_project
from tests import tolerances
from videomla_jax import sharding
from videomla_jax import train
from videomla_jax.small_world import model as model_lib
from videomla_jax.storage import model_folder
from videomla_jax.storage import train_states
from videomla_jax.training import long_tuning
from videomla_jax.training import origins
from videomla_jax.training import programs
from videomla_jax.training.stages import table

CLIP, CHUNK = 6, 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Folder with a student and a dense model, as earlier stages leave them."""
  root = tmp_path_factory.mktemp("streaming")
  patch = pytest.MonkeyPatch()
  tiny_project.shrink(patch)
  rng = np.random.default_rng(0)
  for stage, kind in (("consistency", "latent"), ("pretraining", "dense")):
    model = tiny_project.video(kind, rng)
    model_lib.save(root / stage, model, training=dict(stage=stage))
    assert origins.of(model_folder.read_config(root / stage)) == stage
  yield root
  patch.undo()


def _config(root: pathlib.Path, *, stream: int, steps: int = 1) -> Any:
  start = f"init={root / 'consistency'}"
  scores = f"real={root / 'pretraining'},critic={root / 'pretraining'}"
  config = tiny_project.config(
    "dmd", f"small,runlocal,{start},{scores},stream={stream}"
  )
  config.data.root = str(root / "data")
  config.optim.update(
    steps=steps, critic_updates=1, warmup_steps=0, schedule="constant"
  )
  config.optim.final_fraction = None
  tiny_project.without_samples(config)
  return config


def _batch(config: Any, seed: int) -> dict[str, jax.Array]:
  rng = np.random.default_rng(seed)
  shape = (config.data.batch_size, 4)
  return {"tokens": jnp.asarray(rng.integers(1, 15, shape), jnp.int32)}


def _step(config: Any, program: int | None):
  stage, settings = table.read(config)
  step = stage.make_step(settings)
  return jax.jit(
    lambda state, batch, key, frozen: step(
      state, batch, key, frozen=frozen, program=program
    )
  )


@pytest.mark.slow
def test_a_video_goes_on_and_ends_where_the_config_says(root, seed) -> None:
  config = _config(root, stream=13)  # 6 + 3 + 3 of 13 frames
  stage, settings = table.read(config)
  wanted = [stage.program(settings, i) for i in range(1, 8)]
  begins, goes_on = long_tuning.BEGINS, long_tuning.GOES_ON
  assert wanted == [begins, goes_on, goes_on] * 2 + [begins]
  state, frozen = train.init_state(stage, settings)
  programs = {p: _step(config, p) for p in (begins, goes_on)}
  frames, prompts, clips = [], [], []
  for i, program in enumerate(wanted[:4]):
    key = jax.random.key(seed + i)
    state, scalars = programs[program](
      state, _batch(config, seed + i), key, frozen
    )
    assert np.isfinite(float(scalars["train/loss"]))
    frames.append(set(np.asarray(state.stream.cache.next_frame).tolist()))
    prompts.append(np.asarray(state.stream.batch["tokens"]))
    clips.append(np.asarray(state.stream.clip))
  assert frames == [{6}, {9}, {12}, {6}]
  for i, first in ((1, 0), (2, 0), (3, 3)):
    expected = _batch(config, seed + first)["tokens"]
    np.testing.assert_array_equal(prompts[i], expected)
  for before, after in ((0, 1), (1, 2)):  # the new chunk comes behind
    np.testing.assert_array_equal(
      clips[before][:, CHUNK:], clips[after][:, : CLIP - CHUNK]
    )
  assert not np.array_equal(clips[2][:, CHUNK:], clips[3][:, :CHUNK])


@pytest.mark.slow
def test_the_first_segment_is_a_step_without_streaming(root, seed) -> None:
  alone, streamed = _config(root, stream=0), _config(root, stream=12)
  batch, key = _batch(alone, seed), jax.random.key(seed)
  # Dealt out in turn to the student's and the critic's update.
  both = {"tokens": jnp.repeat(batch["tokens"], 2, axis=0)}
  one, frozen = train.init_state(*table.read(alone))
  two, _ = train.init_state(*table.read(streamed))
  one, values = _step(alone, None)(one, both, key, frozen)
  two, others = _step(streamed, long_tuning.BEGINS)(two, batch, key, frozen)
  for name in ("train/loss_dmd", "train/loss_critic"):
    np.testing.assert_allclose(values[name], others[name], rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    one.student.ema,
    two.student.ema,
  )


@pytest.mark.slow
def test_a_run_goes_on_with_its_videos_after_a_stop(root, tmp_path) -> None:
  config = _config(root, stream=12, steps=3)
  config.checkpoint.every = 1
  train.train(config, str(tmp_path))
  folder = tmp_path / "checkpoints"
  state, _ = train.init_state(*table.read(config))

  def last() -> Any:
    with train_states.TrainCheckpoints(folder, keep=2) as saved:
      restored = saved.restore_latest(state)
    assert restored.step == 3
    return jax.tree.map(np.asarray, restored.state)

  whole = last()
  shutil.rmtree(folder / "3")  # as if it had been stopped after two steps
  train.train(config, str(tmp_path))
  jax.tree.map(np.testing.assert_array_equal, last(), whole)
  assert whole.stream.cache.next_frame.tolist() == [12, 12]


def test_videos_are_split_by_example() -> None:
  batch = ("data", "fsdp")
  for name, rank, spec in (
    ("stream/cache/entries/latent", 5, P(None, batch, None, None, None)),
    ("stream/cache/entries/key", 6, P(None, batch, None, None, None, None)),
    ("stream/cache/next_frame", 1, P(batch)),
    ("stream/clip", 5, P(batch, None, None, None, None)),
    ("stream/batch/negative", 2, P()),
  ):
    assert sharding.spec_of(name, rank) == spec


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(rollout=dict(stream_frames=5)), "at least data.num_frames=6"),
    (dict(rollout=dict(num_frames=9)), "equal to it"),
    (dict(optim=dict(accumulate=2)), "optim.accumulate=2 must be 1"),
  ],
)
def test_lengths_that_do_not_fit_are_refused(root, changes, message) -> None:
  config = _config(root, stream=12)
  config.update(changes)
  with pytest.raises(ValueError, match=message):
    train.check(*table.read(config))


@pytest.mark.slow
def test_videos_go_on_within_a_call_of_several_steps(root, seed) -> None:
  config = _config(root, stream=12, steps=4)
  stage, settings = table.read(config)
  made = programs.Programs(stage, settings)
  batches = [_batch(config, seed + i) for i in range(4)]
  key, ends = jax.random.key(seed), []
  for count in (1, 4):
    state, frozen = train.init_state(stage, settings)
    for first in range(0, 4, count):
      batch = batches[first]
      if count > 1:
        batch = jax.tree.map(lambda *x: jnp.stack(x), *batches)
      arguments = state, batch, key, frozen
      # Steps 1 and 4 begin videos.
      call = made.get(first + count, *arguments, count=count)
      state, scalars = call.step(*arguments)
    assert scalars["train/skipped"].shape == (() if count == 1 else (4,))
    ends.append(state)
  for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
    tolerances.assert_close(a, b, "float32_deep")
