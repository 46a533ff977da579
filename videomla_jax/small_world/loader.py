"""Loads a small world's data: clips on disk become training batches.

Everything random (order, crop, dropout) depends on seed and position alone; see
`batching`.
"""

import dataclasses
import os

import grain
from jaxtyping import Float16, Int32, UInt8
import numpy as np

from videomla_jax.data import batching
from videomla_jax.small_world import builder
from videomla_jax.small_world import moving_digits
from videomla_jax.small_world import prompts
from videomla_jax.small_world import stored_world

Record = dict[
  str,
  UInt8[np.ndarray, "T h w c"]
  | Float16[np.ndarray, "T H W C"]
  | Int32[np.ndarray, "M"],
]

# One batch of video costs well under a millisecond, so a single thread that
# runs a few batches ahead hides it; more threads would only compete with the
# model. Latents are for models that may be on a GPU, where a step may take no
# longer than a batch of them does in one thread.
_READ_OPTIONS = {
  "video": grain.ReadOptions(num_threads=1, prefetch_buffer_size=4),
  "latents": grain.ReadOptions(num_threads=4, prefetch_buffer_size=32),
}


def make_loader(
  data_dir: str | os.PathLike[str],
  *,
  batch_size: int,
  num_frames: int,
  seed: int,
  prompt_dropout: float = 0.1,
  word_dropout: float = 0.05,
  num_epochs: int | None = None,
  split: str = "train",
  config: stored_world.StoredWorldConfig | None = None,
  build: bool = True,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """Returns this process's shuffled batches of clips with tokenised prompts.

  `iter(loader)` gives an iterator whose `get_state()` and `set_state(state)`
  resume exactly. Each element is a dict of "video", uint8 in 0..255, and
  "tokens", int32, with b = batch_size / process_count: [b, T, 24, 24, 1] and
  [b, 4] of moving digits, [b, T, 64, 64, 3] and [b, 13] of the colour world. A
  set of latents has "latents", float16 [b, T, H, W, C], in place of "video".

  Args:
    data_dir: Root folder of TFDS data sets.
    batch_size: Clips per step over all processes.
    num_frames: Frames per clip, a random window of the stored clip, or its
      first frames if its prompt tells how it begins.
    seed: Seed of order, crops and dropout; not of the stored clips.
    prompt_dropout: Chance that the whole prompt becomes padding, 0..1.
    word_dropout: Chance that a single word becomes padding, 0..1.
    num_epochs: Passes over the data, each in a new order; None never ends.
    split: "train" or "test".
    config: Which data set; None is the default one of moving digits.
    build: Whether a missing data set is built; otherwise it is an error.
    process_index: This process, usually `jax.process_index()`.
    process_count: Processes that share the data.

  Raises:
    ValueError: If an argument is out of range, or data are missing and may not
      be built.
  """
  config = config or moving_digits.DEFAULT_CONFIG
  batching.check_counts(batch_size, num_epochs)
  _check_frames(num_frames, config)
  batching.check_seed(seed)
  batching.check_chance("prompt_dropout", prompt_dropout)
  batching.check_chance("word_dropout", word_dropout)
  batching.check_processes(batch_size, process_index, process_count)
  stored = builder.open_split(data_dir, split=split, config=config, build=build)
  augment = _Augment(
    config=config,
    num_frames=num_frames,
    prompt_dropout=prompt_dropout,
    word_dropout=word_dropout,
  )
  clips = grain.MapDataset.source(stored).seed(seed).shuffle()
  return batching.batches(
    clips.repeat(num_epochs).random_map(augment),
    batch_size=batch_size,
    process_index=process_index,
    process_count=process_count,
    read_options=_READ_OPTIONS[config.clip_feature],
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Augment(grain.transforms.RandomMap):
  """Makes a training example of a record: crops it, drops words."""

  config: stored_world.StoredWorldConfig
  num_frames: int
  prompt_dropout: float
  word_dropout: float

  def random_map(
    self, element: dict[str, np.ndarray | bytes | int], rng: np.random.Generator
  ) -> Record:
    """Returns the example of one record; Grain gives each its own rng."""
    feature = self.config.clip_feature
    clip = element[feature]
    # A clip of moving digits may start anywhere in the stored one: all frames
    # are alike to a codec without memory, unlike those of a video VAE.
    spare = 0 if self.config.from_start else len(clip) - self.num_frames
    first = int(rng.integers(spare + 1))
    tokens = self.config.tokenize(element["prompt"])
    dropped = rng.random(len(tokens)) < self.word_dropout
    dropped |= rng.random() < self.prompt_dropout
    return {
      feature: clip[first : first + self.num_frames],
      "tokens": np.where(dropped, np.int32(prompts.PADDING), tokens),
    }


def _check_frames(
  num_frames: int, config: stored_world.StoredWorldConfig
) -> None:
  if not 1 <= num_frames <= config.clip_length:
    raise ValueError(
      f"num_frames={num_frames} must be from 1 to the {config.clip_length}"
      " frames of a stored clip; use fewer, or a data set of longer clips."
    )
