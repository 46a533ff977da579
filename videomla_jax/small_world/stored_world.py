"""What the data sets of all small worlds have in common."""

import abc
from collections.abc import Iterator
import contextlib
import dataclasses
from typing import Any, ClassVar

from absl import logging
from jaxtyping import Int32
import numpy as np
import tensorflow_datasets as tfds


@dataclasses.dataclass(kw_only=True)
class StoredWorldConfig(tfds.core.BuilderConfig):
  """Says what a built data set contains; all of it is in its name.

  Attributes:
    num_clips: Clips of the train split.
    num_test_clips: Clips of the test split.
    num_frames: Frames of every clip.
    seed: Seed of the data; equal seeds give equal files.
    from_start: Whether a prompt tells how a clip begins, so that every example
      is read from its first frame.
    clip_feature: Name of a record's clip: "video" or "latents".
  """

  # BuilderConfig declares `name` without a default for keyword-only children.
  name: str = ""
  num_clips: int
  num_test_clips: int
  num_frames: int
  seed: int = 0
  from_start: ClassVar[bool] = False
  clip_feature: ClassVar[str] = "video"

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

  @property
  def clip_length(self) -> int:
    """Frames of a stored clip, pixel or latent frames by `clip_feature`."""
    return self.num_frames

  def builder(self, data_dir: str) -> "StoredWorld":
    """Returns the builder of this data set.

    Args:
      data_dir: Root folder of TFDS data sets.
    """
    raise NotImplementedError

  def tokenize(self, prompt: bytes) -> Int32[np.ndarray, "M"]:
    """Returns the token ids of a stored prompt.

    Args:
      prompt: A prompt of this world, UTF-8.
    """
    raise NotImplementedError


class StoredWorld(tfds.core.GeneratorBasedBuilder):
  """TFDS builder of a small world, made and read without TensorFlow.

  The train split has training handwriting and training prompts; the test
  split has held-out handwriting and held-out prompts. Clips do not depend on
  the order of generation. TFDS writes into a temporary folder and renames it
  when complete.
  """

  VERSION = tfds.core.Version("1.0.0")

  def __init__(
    self,
    *,
    data_dir: str,
    config: StoredWorldConfig | None = None,
    file_format: str = "array_record",
    **kwargs: Any,
  ) -> None:
    with _no_word_of_other_configs():
      # TFDS takes a registered config by default only, and refuses its equals.
      super().__init__(
        data_dir=data_dir,
        config=None if config in self.BUILDER_CONFIGS else config,
        file_format=file_format,
        **kwargs,
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

  @abc.abstractmethod
  def _generate_examples(
    self, split: str, num_clips: int
  ) -> Iterator[tuple[int, dict]]:
    """Yields numbered records of a split, "train" or "test"."""


@contextlib.contextmanager
def _no_word_of_other_configs() -> Iterator[None]:
  """Keeps TFDS from warning of every config that it does not know by name."""
  logger = logging.get_absl_logger()
  drop = lambda record: "custom data configuration" not in record.getMessage()
  logger.addFilter(drop)
  try:
    yield
  finally:
    logger.removeFilter(drop)
