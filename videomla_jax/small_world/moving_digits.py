"""The data set of moving digits, made and read through TFDS."""

from collections.abc import Iterator
import dataclasses
import functools
from typing import ClassVar

from jaxtyping import Int32
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from videomla_jax.small_world import prompts
from videomla_jax.small_world import stored_world
from videomla_jax.small_world import world


@dataclasses.dataclass(kw_only=True)
class MovingDigitsConfig(stored_world.StoredWorldConfig):
  """Says what a built data set contains, see `StoredWorldConfig`."""

  num_clips: int = 20_000
  num_test_clips: int = 500
  num_frames: int = 24

  def builder(self, data_dir: str) -> "MovingDigits":
    """Returns the builder of this data set.

    Args:
      data_dir: Root folder of TFDS data sets.
    """
    return MovingDigits(data_dir=data_dir, config=self)

  def tokenize(self, prompt: bytes) -> Int32[np.ndarray, "4"]:
    """Returns the token ids of a stored prompt.

    Args:
      prompt: Sentence that `prompts.parse` understands, UTF-8.
    """
    return _tokenize(prompt.decode())


DEFAULT_CONFIG = MovingDigitsConfig()


class MovingDigits(stored_world.StoredWorld):
  """TFDS builder of the small world, see `StoredWorld`."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS: ClassVar = [DEFAULT_CONFIG]

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


@functools.cache  # 60 distinct prompts
def _tokenize(prompt: str) -> Int32[np.ndarray, "4"]:
  tokens = prompts.tokenize(prompt)
  tokens.setflags(write=False)  # shared by every example
  return tokens
