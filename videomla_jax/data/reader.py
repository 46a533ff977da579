"""Reads prepared clips: what `prepare` wrote, as batches for training.

A batch has "latents" `[b, T, H, W, C]` float16, "text" `[b, M, E]` bfloat16,
padded with zeros as Wan pads, and "negative" `[M, E]`, the same for all. Order
and dropout are functions of seed and position, see `batching`.
"""

import dataclasses
import os
from typing import Any

import grain
from jaxtyping import Float
import numpy as np

from videomla_jax.data import batching
from videomla_jax.data import dataset
from videomla_jax.data import example_shape
from videomla_jax.data import record_files
from videomla_jax.data import record_source

# A clip has megabytes, which one thread could not read while training runs.
_READ_OPTIONS = grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)


def make_loader(
  folder: str | os.PathLike[str],
  *,
  batch_size: int,
  shapes: example_shape.ExampleShape,
  seed: int,
  prompt_dropout: float | int = 0.0,
  num_epochs: int | None = None,
  split: str = "train",
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """Returns shuffled batches of this process.

  `iter(loader)` gives an iterator whose `get_state()` and `set_state(state)`
  resume exactly, on any number of processes.

  Args:
    folder: Output of `prepare`.
    batch_size: Examples per step over all processes.
    shapes: Shapes of the examples. The first frames of a clip are taken, since
      a video VAE encodes the first frame like no other.
    seed: Seed of order and dropout.
    prompt_dropout: Chance that a prompt becomes the negative prompt, 0..1.
    num_epochs: Passes over the data, each in a new order; None never ends.
    split: "train" or "test".
    process_index: Number of this process, from 0.
    process_count: Processes that share the data.

  Raises:
    ValueError: If an argument is out of range, or the data do not fit.
  """
  batching.check_counts(batch_size, num_epochs)
  batching.check_seed(seed)
  batching.check_chance("prompt_dropout", prompt_dropout)
  batching.check_processes(batch_size, process_index, process_count)
  example_shape.check(folder, shapes)
  negative = record_files.unpack(
    dataset.read_null_text(folder), num_tokens=shapes.text[0]
  )
  clips = grain.MapDataset.source(open_records(folder, split, shapes)).seed(
    seed
  )
  # Repeating what is shuffled gives every pass an order of its own.
  clips = clips.shuffle().repeat(num_epochs)
  clips = clips.random_map(_Example(shapes, negative, float(prompt_dropout)))
  loader = batching.batches(
    clips,
    batch_size=batch_size,
    process_index=process_index,
    process_count=process_count,
    read_options=_READ_OPTIONS,
  )
  # The negative prompt is equal for all rows; batching would copy it.
  return loader.map(lambda batch: batch | {"negative": negative})


def read_captions(
  folder: str | os.PathLike[str], shapes: example_shape.ExampleShape, count: int
) -> tuple[list[str], Float[np.ndarray, "V M E"], Float[np.ndarray, "M E"]]:
  """Returns captions to try a model on: held-out ones, else those of training.

  Args:
    folder: Output of `prepare`.
    shapes: Shapes of the examples; the embeddings are padded to them.
    count: Most captions, each of them once.

  Returns:
    Captions, their embeddings, and the embedding of the negative prompt.
  """
  # Captions that training has not seen come first, if any were held out.
  root = dataset.locate(folder)
  splits = record_source.open_builder(root).info.splits
  split = "test" if "test" in splits else "train"
  source = record_source.open_split(root, split, skipped={"latents"})
  found: dict[str, np.ndarray] = {}
  for i in range(len(source)):
    if len(found) == count:
      break
    record = source[i]
    # Clips of one video share its caption.
    caption = record["caption"].decode("utf-8", "replace")
    found.setdefault(caption, _unpacked(record, shapes))
  negative = record_files.unpack(
    dataset.read_null_text(root), num_tokens=shapes.text[0]
  )
  return [*found], np.stack([*found.values()]), negative


def open_records(
  folder: str | os.PathLike[str], split: str, shapes: example_shape.ExampleShape
) -> record_source.Records:
  """Opens a split for random access; what is not wanted is not decoded.

  Args:
    folder: Output of `prepare`.
    split: "train" or "test".
    shapes: Shapes of the examples that training wants.

  Raises:
    ValueError: If there is no such split.
  """
  root = dataset.locate(folder)
  builder = record_source.open_builder(root)
  if split not in builder.info.splits:
    raise ValueError(
      f"data.root={str(folder)!r} has no clips in split {split!r}; prepare more"
      " videos, with a test_fraction above 0 for held-out ones, or set"
      " eval.batches=0."
    )
  wanted = {"text"} | ({"latents"} if shapes.latents is not None else set())
  skipped = set(builder.info.features) - wanted
  return record_source.open_split(root, split, skipped=skipped)


@dataclasses.dataclass(frozen=True)
class _Example(grain.transforms.RandomMap):
  """Makes a training example of a record: first frames, padding, dropout."""

  shapes: example_shape.ExampleShape
  negative: Float[np.ndarray, "M E"]
  prompt_dropout: float

  def random_map(
    self, element: dict[str, Any], rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    """Returns the example of one record; Grain gives each its own rng."""
    text = _unpacked(element, self.shapes)
    if rng.random() < self.prompt_dropout:
      text = self.negative
    example = {"text": text}
    if self.shapes.latents is not None:
      latents = element["latents"][: self.shapes.latents[0]]
      if latents.shape != self.shapes.latents:
        raise ValueError(
          f"a record has latents of shape {latents.shape} in place of"
          f" {self.shapes.latents}; make the data set again."
        )
      example["latents"] = latents
    return example


def _unpacked(
  element: dict[str, Any], shapes: example_shape.ExampleShape
) -> Float[np.ndarray, "M E"]:
  """Returns the padded text of a record, which must fit."""
  text, (tokens, width) = element["text"], shapes.text
  if text.shape[0] > tokens or text.shape[1] != width:
    raise ValueError(
      f"a record has a text of shape {text.shape}, which does not fit into"
      f" {shapes.text}; make the data set again."
    )
  return record_files.unpack(text, num_tokens=tokens)
