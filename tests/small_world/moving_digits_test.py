"""Tests of the data set of moving digits."""

import os

from absl import logging
import numpy as np
import pytest

from videomla_jax.small_world import moving_digits
from videomla_jax.small_world import prompts
from videomla_jax.small_world import world


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """A small data set and its folder."""
  folder = tmp_path_factory.mktemp("built")
  config = moving_digits.MovingDigitsConfig(
    num_clips=150, num_test_clips=40, num_frames=5, seed=3
  )
  builder = moving_digits.MovingDigits(data_dir=str(folder), config=config)
  builder.download_and_prepare()
  return builder, folder


def test_built_splits_keep_to_their_prompts_and_handwriting(built):
  builder, _ = built
  num_clips = {"train": 150, "test": 40}
  for split in world.SPLITS:
    allowed = set(world.split_prompts(split))
    images, _ = world.load_sprites(split)
    known = {np.rint(image * 255).astype("u1").tobytes() for image in images}
    source = builder.as_data_source(split)
    assert len(source) == num_clips[split]
    for record in source:
      prompt = prompts.parse(record["prompt"].decode())
      assert prompt in allowed
      assert prompt.digit == record["label"]
      x, y = record["positions"][0]
      assert record["video"][0, y : y + 8, x : x + 8].tobytes() in known


def test_building_leaves_no_temporary_folder(built):
  builder, folder = built
  parent = os.path.dirname(builder.data_dir)
  assert os.listdir(parent) == ["1.0.0"]
  assert str(folder) in parent


def test_rebuilding_gives_equal_records(built, tmp_path):
  builder, _ = built
  again = moving_digits.MovingDigits(
    data_dir=str(tmp_path), config=builder.builder_config
  )
  again.download_and_prepare()
  for split in world.SPLITS:
    pairs = zip(
      builder.as_data_source(split), again.as_data_source(split), strict=True
    )
    for one, two in pairs:
      assert one["prompt"] == two["prompt"]
      np.testing.assert_array_equal(one["video"], two["video"])
      np.testing.assert_array_equal(one["positions"], two["positions"])


def test_failed_build_leaves_no_data_set(tmp_path, monkeypatch):
  config = moving_digits.MovingDigitsConfig(num_clips=9, num_test_clips=2)
  builder = moving_digits.MovingDigits(data_dir=str(tmp_path), config=config)

  def fail(*args):
    raise OSError("disk full")

  monkeypatch.setattr(world, "sample_clip", fail)
  with pytest.raises(OSError, match="disk full"):
    builder.download_and_prepare()
  assert not os.path.exists(builder.data_dir)
  assert not os.listdir(os.path.dirname(builder.data_dir))


@pytest.mark.parametrize(
  "field", ["num_clips", "num_test_clips", "num_frames", "seed"]
)
def test_config_rejects_nonsense(field):
  with pytest.raises(ValueError, match=f"{field}=-1"):
    moving_digits.MovingDigitsConfig(**{field: -1})


def test_a_config_of_ones_own_gives_no_warning(tmp_path, caplog):
  config = moving_digits.MovingDigitsConfig(num_clips=3, num_frames=4)
  with caplog.at_level("WARNING"):
    moving_digits.MovingDigits(data_dir=str(tmp_path), config=config)
    assert not caplog.messages
    logging.get_absl_logger().warning("custom data configuration")
  # Only TFDS is kept quiet, and only then.
  assert caplog.messages == ["custom data configuration"]
