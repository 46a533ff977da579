"""The reader of digits of the colour world: trained, tested, kept in a cache.

It is the only trained part of the judge; everything else is computed from the
known colours by `observe`.
"""

import dataclasses
import os
import time

from absl import logging
from flax import nnx
import jax
from jaxtyping import Array, Float
import numpy as np
import optax

from videomla_jax.small_world import judge_cache
from videomla_jax.small_world import judge_training
from videomla_jax.small_world.colour import digits
from videomla_jax.small_world.colour import glyphs

_VERSION = 1  # raise when the code below changes what a recipe trains


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """Says how a reader is trained.

  Attributes:
    num_crops: Synthetic crops, all kept in memory.
    num_epochs: Passes over them.
    batch_size: Crops of a step.
    learning_rate: Peak rate of AdamW, decayed along a cosine.
    num_warps: Slightly rotated, sheared and moved copies of each digit.
    dropout: Rate in front of both dense layers.
  """

  num_crops: int = 32_000
  num_epochs: int = 4
  batch_size: int = 128
  learning_rate: float = 2e-3
  num_warps: int = 12
  dropout: float = 0.3

  def __post_init__(self) -> None:
    if not 1 <= self.batch_size <= self.num_crops:
      raise ValueError(
        f"batch_size={self.batch_size} must be from 1 to"
        f" num_crops={self.num_crops}; use a smaller batch."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """Accuracies on held-out handwriting.

  Attributes:
    identity: Top-1 with the damage of training.
    identity_clean: Top-1 without damage, at parts of a pixel.
    train_seconds: Wall time of the training.
  """

  identity: float
  identity_clean: float
  train_seconds: float

  def text(self) -> str:
    """Returns the report as a line for people."""
    return (
      f"reader of digits on held-out handwriting: {self.identity:.3f} damaged,"
      f" {self.identity_clean:.3f} clean"
    )


def train(
  seed: int, *, recipe: Recipe = Recipe()
) -> tuple[glyphs.Reader, Report]:
  """Trains a reader on training handwriting and tests it on the other.

  Args:
    seed: Seed of data, weights and order; equal seeds give equal readers.
    recipe: Sizes and rates.

  Returns:
    The reader and its accuracies on held-out handwriting.
  """
  start = time.monotonic()
  rng = np.random.default_rng((seed, 0))
  data = glyphs.synthesise(
    rng, "train", num_crops=recipe.num_crops, num_warps=recipe.num_warps
  )
  reader = glyphs.Reader(dropout=recipe.dropout, rngs=nnx.Rngs(seed))
  reader = judge_training.fit(
    reader,
    data,
    _loss,
    rng=rng,
    key=jax.random.key(seed),
    recipe=recipe,
  )
  seconds = time.monotonic() - start
  report = examine(reader, seed=seed, train_seconds=seconds)
  logging.info("%s; trained in %.1f s", report.text(), seconds)
  return reader, report


def load_or_train(
  path: str | os.PathLike[str], *, seed: int = 0, recipe: Recipe = Recipe()
) -> tuple[glyphs.Reader, Report]:
  """Loads a cached reader, or trains one and caches it.

  Args:
    path: The `.npz` cache, see `judge_cache.load_or_make`.
    seed: Seed of data, weights and order.
    recipe: Sizes and rates of the training.

  Returns:
    The reader and the report of its training.
  """
  return judge_cache.load_or_make(
    path,
    empty=glyphs.Reader(dropout=recipe.dropout, rngs=nnx.Rngs(0)),
    report_of=lambda fields: Report(**fields),
    fingerprint=judge_cache.fingerprint(
      _VERSION, seed, recipe, digits.load("train").ink
    ),
    make=lambda: train(seed, recipe=recipe),
  )


def examine(
  reader: glyphs.Reader, *, seed: int, train_seconds: float = 0.0
) -> Report:
  """Returns what a reader is worth on held-out handwriting.

  Args:
    reader: A trained reader.
    seed: Seed of the synthetic crops.
    train_seconds: Wall time of the training, for the report.
  """
  # Training draws from (seed, 0), so the test has a stream of its own.
  rng = np.random.default_rng((seed, 1))
  right = []
  for clean in (False, True):
    crops = glyphs.synthesise(rng, "test", num_crops=3000, clean=clean)
    said = glyphs.read(reader, crops.images).argmax(1)
    right.append(float((said == crops.identity).mean()))
  return Report(
    identity=right[0], identity_clean=right[1], train_seconds=train_seconds
  )


def _loss(
  reader: glyphs.Reader, batch: glyphs.Crops, dropout: nnx.Rngs
) -> Float[Array, ""]:
  """Cross-entropy; smooth targets keep probabilities honest."""
  logits = reader(batch.images, rngs=dropout)
  targets = optax.smooth_labels(jax.nn.one_hot(batch.identity, 10), 0.1)
  return optax.softmax_cross_entropy(logits, targets).mean()
