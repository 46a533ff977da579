"""Judges of generated frames: trained, tested and kept in a cache.

A judge is trained on the training sprites, drawn in the world and damaged as a
generative model would damage them, and it is tested on the held-out sprites;
its report belongs beside every number that it helps to measure.
"""

import dataclasses
import os
import time

from absl import logging
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np
import optax

from videomla_jax.small_world import judge_cache
from videomla_jax.small_world import judge_frames as judge_frames_lib
from videomla_jax.small_world import judge_network
from videomla_jax.small_world import judge_training
from videomla_jax.small_world import world

_VERSION = 1  # raise when the code below changes what a recipe trains


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeRecipe:
  """Says how a judge is trained.

  Attributes:
    num_frames: Synthetic training frames, all kept in memory.
    num_epochs: Passes over them.
    batch_size: Frames of a step.
    learning_rate: Peak rate of AdamW, decayed along a cosine.
    num_warps: Slightly rotated, sheared and moved copies of each sprite.
    dropout: Rate inside the identity head.
  """

  num_frames: int = 40_000
  num_epochs: int = 5
  batch_size: int = 128
  learning_rate: float = 2e-3
  num_warps: int = 12
  dropout: float = 0.4

  def __post_init__(self) -> None:
    if not 1 <= self.batch_size <= self.num_frames:
      raise ValueError(
        f"batch_size={self.batch_size} must be from 1 to"
        f" num_frames={self.num_frames}; use a smaller batch."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeReport:
  """Accuracies on held-out sprites; damaged means as in training.

  Attributes:
    identity: Top-1 of damaged whole digits.
    identity_clean: Top-1 of undamaged digits at all lattice positions.
    content: Accuracy of the content class over all kinds of frames.
    whole_clean: Share of undamaged digits that are called whole.
    confusion: Rows are true, columns are judged content; rows sum to 1.
    kinds: Content accuracy by kind of synthetic frame.
    train_seconds: Wall time of the training.
  """

  identity: float
  identity_clean: float
  content: float
  whole_clean: float
  confusion: list[list[float]]
  kinds: dict[str, float]
  train_seconds: float

  def text(self) -> str:
    """Returns the report as a few lines for people."""
    kinds = ", ".join(f"{k} {v:.3f}" for k, v in self.kinds.items())
    rows = "; ".join(
      f"{name}: " + " ".join(f"{share:.3f}" for share in row)
      for name, row in zip(judge_frames_lib.CONTENTS, self.confusion)
    )
    return (
      f"judge on held-out sprites: identity {self.identity:.3f} damaged,"
      f" {self.identity_clean:.3f} clean; content {self.content:.3f}, clean"
      f" digits called whole {self.whole_clean:.3f}\n"
      f"  content by kind: {kinds}\n"
      f"  confusion (judged fragment, whole, doubled): {rows}"
    )


def train_judge(
  seed: int, *, recipe: JudgeRecipe = JudgeRecipe()
) -> tuple[judge_network.Judge, JudgeReport]:
  """Trains a judge on the training sprites and tests it on the others.

  Args:
    seed: Seed of data, weights and order; equal seeds give equal judges.
    recipe: Sizes and rates.

  Returns:
    The judge and its accuracies on held-out sprites.
  """
  start = time.monotonic()
  rng = np.random.default_rng((seed, 0))
  sprites, labels = world.load_sprites("train")
  # Copies stand in for other writers, whom the held-out sprites are by.
  copies = [sprites] + [
    judge_frames_lib.warp(rng, sprites) for _ in range(recipe.num_warps)
  ]
  data = judge_frames_lib.synthesise(
    rng,
    np.concatenate(copies),
    np.tile(labels, len(copies)),
    num_frames=recipe.num_frames,
  )
  judge = judge_network.Judge(dropout=recipe.dropout, rngs=nnx.Rngs(seed))
  judge = judge_training.fit(
    judge,
    data,
    _loss,
    rng=rng,
    key=jax.random.key(seed),
    recipe=recipe,
  )
  seconds = time.monotonic() - start
  report = examine_judge(judge, seed=seed, train_seconds=seconds)
  logging.info("judge: trained in %.1f s\n%s", seconds, report.text())
  return judge, report


def load_or_train_judge(
  path: str | os.PathLike[str],
  *,
  seed: int = 0,
  recipe: JudgeRecipe = JudgeRecipe(),
) -> tuple[judge_network.Judge, JudgeReport]:
  """Loads a cached judge, or trains one and caches it.

  Args:
    path: The `.npz` cache; it is written whole or not at all. A file of
      another recipe, seed or version, or one that is damaged, is replaced.
    seed: Seed of data, weights and order.
    recipe: Sizes and rates of the training.

  Returns:
    The judge and the report of its training.
  """
  return judge_cache.load_or_make(
    path,
    empty=judge_network.Judge(dropout=recipe.dropout, rngs=nnx.Rngs(0)),
    report_of=lambda fields: JudgeReport(**fields),
    fingerprint=judge_cache.fingerprint(
      _VERSION, seed, recipe, world.load_sprites("train")[0]
    ),
    make=lambda: train_judge(seed, recipe=recipe),
  )


def examine_judge(
  judge: judge_network.Judge, *, seed: int, train_seconds: float = 0.0
) -> JudgeReport:
  """Returns what a judge is worth on held-out sprites.

  Args:
    judge: A trained judge.
    seed: Seed of the synthetic frames.
    train_seconds: Wall time of the training, for the report.
  """
  sprites, labels = world.load_sprites("test")
  # Training draws from (seed, 0), so the test has a stream of its own.
  rng = np.random.default_rng((seed, 1))
  data = judge_frames_lib.synthesise(rng, sprites, labels, num_frames=8000)
  images = data.images[None] / np.float32(255)
  damaged = judge_network.judge_frames(judge, images)
  correct = damaged.content[0] == data.content
  clean_frames, places = judge_frames_lib.clean_frames(sprites)
  clean = judge_network.judge_frames(judge, clean_frames[None])
  whole = data.content == judge_frames_lib.WHOLE
  confusion = np.zeros((3, 3))
  np.add.at(confusion, (data.content, damaged.content[0]), 1)
  return JudgeReport(
    identity=float((damaged.identity[0] == data.identity)[whole].mean()),
    identity_clean=float((clean.identity[0] == labels.repeat(places)).mean()),
    content=float(correct.mean()),
    whole_clean=float((clean.content == judge_frames_lib.WHOLE).mean()),
    confusion=(confusion / confusion.sum(1, keepdims=True)).tolist(),
    kinds={
      name: float(correct[data.kind == index].mean())
      for index, name in enumerate(judge_frames_lib.KIND_NAMES)
    },
    train_seconds=train_seconds,
  )


def _loss(
  judge: judge_network.Judge,
  batch: judge_frames_lib.SyntheticFrames,
  dropout: nnx.Rngs,
) -> Float[Array, ""]:
  """Cross-entropies; identity counts only where one whole digit is shown."""
  frames = batch.images.astype(jnp.float32) / 255
  identity_logits, content_logits = judge(frames, rngs=dropout)
  # Smooth targets keep probabilities honest on damaged frames.
  targets = optax.smooth_labels(jax.nn.one_hot(batch.identity, 10), 0.1)
  identity = optax.softmax_cross_entropy(identity_logits, targets)
  whole = batch.content == judge_frames_lib.WHOLE
  content = optax.softmax_cross_entropy_with_integer_labels(
    content_logits, batch.content
  )
  # A batch may hold no whole digit, so the divisor is never 0.
  return (identity * whole).sum() / (whole.sum() + 1) + content.mean()
