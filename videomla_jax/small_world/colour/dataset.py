"""The data set of the colour world, made and read through TFDS."""

from collections.abc import Iterator
import dataclasses
import functools
from typing import ClassVar

import jax
from jaxtyping import Int32
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from videomla_jax.small_world import stored_world
from videomla_jax.small_world import world as small_world
from videomla_jax.small_world.colour import words
from videomla_jax.small_world.colour import world

_BATCH = 8  # clips that are drawn at a time


@dataclasses.dataclass(kw_only=True)
class ColourWorldConfig(stored_world.StoredWorldConfig):
  """Says what a built data set contains, see `StoredWorldConfig`.

  A prompt names the directions in the first frame, so examples begin there.
  """

  num_clips: int = 2_000
  num_test_clips: int = 200
  num_frames: int = 81
  from_start: ClassVar[bool] = True

  def builder(self, data_dir: str) -> "ColourWorld":
    """Returns the builder of this data set.

    Args:
      data_dir: Root folder of TFDS data sets.
    """
    return ColourWorld(data_dir=data_dir, config=self)

  def tokenize(self, prompt: bytes) -> Int32[np.ndarray, "places"]:
    """Returns the token ids of a stored prompt.

    Args:
      prompt: Sentence that `prompts.parse` understands, UTF-8.
    """
    return words.tokenize(prompt.decode())


DEFAULT_CONFIG = ColourWorldConfig()


class ColourWorld(stored_world.StoredWorld):
  """TFDS builder of the colour world, see `StoredWorld`.

  A record has "video", "prompt" and every field of `world.Truth`.
  """

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS: ClassVar = [DEFAULT_CONFIG]

  def _info(self) -> tfds.core.DatasetInfo:
    shapes = jax.eval_shape(self._draw("train"), 0)
    # Raw bytes: the default encoding turns every pixel into an int64.
    tensor = lambda array: tfds.features.Tensor(
      shape=array.shape[1:], dtype=np.dtype(array.dtype), encoding="bytes"
    )
    truth = {k: tensor(v) for k, v in shapes.truth._asdict().items()}
    return tfds.core.DatasetInfo(
      builder=self,
      description="Handwritten digits in colour bounce and pass behind walls.",
      features=tfds.features.FeaturesDict(
        {
          "video": tensor(shapes.video),
          "prompt": tfds.features.Text(),
          **truth,
        }
      ),
    )

  def _draw(self, split: str) -> "functools.partial[world.Clips]":
    """Returns the function of a clip's number that draws some from there."""
    config = self.builder_config
    key = jax.random.key(config.seed)
    return functools.partial(
      _sample,
      jax.random.fold_in(key, small_world.SPLITS.index(split)),
      num_frames=config.num_frames,
      split=split,
    )

  def _generate_examples(
    self, split: str, num_clips: int
  ) -> Iterator[tuple[int, dict]]:
    draw = jax.jit(self._draw(split))
    with tqdm.tqdm(
      total=num_clips, desc=f"{split} clips", unit=" clips", mininterval=1.0
    ) as bar:
      for first in range(0, num_clips, _BATCH):
        clips = jax.device_get(draw(first))
        for i in range(min(_BATCH, num_clips - first)):
          truth = clips.truth._asdict().items()
          yield (
            first + i,
            {
              "video": clips.video[i],
              "prompt": words.prompt_of(clips.choices[i]).text(),
              **{name: array[i] for name, array in truth},
            },
          )
          bar.update()


def _sample(
  key: jax.Array, first: int | jax.Array, *, num_frames: int, split: str
) -> world.Clips:
  return world.sample(
    key, size=_BATCH, num_frames=num_frames, split=split, first=first
  )
