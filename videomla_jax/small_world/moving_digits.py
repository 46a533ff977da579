"""The data set of moving digits, made and read through TFDS."""

from collections.abc import Iterator
import dataclasses
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from videomla_jax.small_world import world


@dataclasses.dataclass(kw_only=True)
class MovingDigitsConfig(tfds.core.BuilderConfig):
  """Says what a built data set contains; all of it is in its name.

  Attributes:
    num_clips: Clips of the train split.
    num_test_clips: Clips of the test split.
    num_frames: Frames of every clip.
    seed: Seed of the data; equal seeds give equal files.
  """

  # BuilderConfig declares `name` without a default for keyword-only children.
  name: str = ""
  num_clips: int = 20_000
  num_test_clips: int = 500
  num_frames: int = 24
  seed: int = 0

  def __post_init__(self) -> None:
    for field in ("num_clips", "num_test_clips", "num_frames"):
      value = getattr(self, field)
      if value < 1:
        raise ValueError(f"{field}={value} must be positive; use 1 or more.")
    if self.seed < 0:
      raise ValueError(f"seed={self.seed} must not be negative; use 0 or more.")
    self.name = (
      f"clips{self.num_clips}_test{self.num_test_clips}"
      f"_frames{self.num_frames}_seed{self.seed}"
    )


DEFAULT_CONFIG = MovingDigitsConfig()


class MovingDigits(tfds.core.GeneratorBasedBuilder):
  """TFDS builder of the small world, made and read without TensorFlow.

  The train split has training handwriting and training prompts; the test
  split has held-out handwriting and held-out prompts. Each clip has its own
  random stream, so the data do not depend on the order of generation. TFDS
  writes into a temporary folder and renames it when complete.
  """

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS: ClassVar = [DEFAULT_CONFIG]

  def __init__(
    self,
    *,
    data_dir: str,
    config: MovingDigitsConfig | None = None,
    file_format: str = "array_record",
    **kwargs: Any,
  ) -> None:
    # TFDS takes a registered config by default only, and refuses its equals.
    super().__init__(
      data_dir=data_dir,
      config=None if config == DEFAULT_CONFIG else config,
      file_format=file_format,
      **kwargs,
    )

  def _info(self) -> tfds.core.DatasetInfo:
    size = world.World().frame_size
    num_frames = self.builder_config.num_frames
    return tfds.core.DatasetInfo(
      builder=self,
      description="A handwritten digit bounces inside a small frame.",
      features=tfds.features.FeaturesDict(
        {
          # The frames are stored as raw bytes: the default encoding turns every
          # pixel into an int64.
          "video": tfds.features.Tensor(
            shape=(num_frames, size, size, 1), dtype=np.uint8, encoding="bytes"
          ),
          "prompt": tfds.features.Text(),
          "label": tfds.features.Scalar(dtype=np.int32),
          "positions": tfds.features.Tensor(
            shape=(num_frames, 2), dtype=np.int32, encoding="bytes"
          ),
        }
      ),
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict]]]:
    del dl_manager  # the digits come with scikit-learn
    config = self.builder_config
    return {
      "train": self._generate_examples("train", config.num_clips),
      "test": self._generate_examples("test", config.num_test_clips),
    }

  def _generate_examples(
    self, split: str, num_clips: int
  ) -> Iterator[tuple[int, dict]]:
    config = self.builder_config
    bar = tqdm.trange(
      num_clips, desc=f"{split} clips", unit=" clips", mininterval=1.0
    )
    place = world.SPLITS.index(split)
    for index in bar:
      rng = np.random.default_rng((config.seed, place, index))
      clip = world.sample_clip(rng, None, split, config.num_frames)
      yield (
        index,
        {
          "video": clip.video,
          "prompt": clip.prompt.text(),
          "label": clip.label,
          "positions": clip.positions,
        },
      )
