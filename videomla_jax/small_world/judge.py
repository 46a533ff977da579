"""Judges of generated frames: trained, tested and kept in a cache.

A judge is trained on the training sprites, drawn in the world and damaged as a
generative model would damage them, and it is tested on the held-out sprites;
its report belongs beside every number that it helps to measure.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import time
from typing import Any

from absl import logging
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
import numpy as np
import optax

from videomla_jax.small_world import judge_frames as judge_frames_lib
from videomla_jax.small_world import judge_network
from videomla_jax.small_world import world
from videomla_jax.storage import array_files
from videomla_jax.storage import atomic

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
  judge = _fit(judge, data, rng=rng, key=jax.random.key(seed), recipe=recipe)
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
  path, fingerprint = os.fspath(path), _fingerprint(seed, recipe)
  empty = judge_network.Judge(dropout=recipe.dropout, rngs=nnx.Rngs(0))
  if (cached := _read(path, empty, fingerprint)) is not None:
    return cached
  judge, report = train_judge(seed, recipe=recipe)
  _write(path, judge, report, fingerprint)
  return judge, report


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


def _fit(
  judge: judge_network.Judge,
  data: judge_frames_lib.SyntheticFrames,
  *,
  rng: np.random.Generator,
  key: PRNGKeyArray,
  recipe: JudgeRecipe,
) -> judge_network.Judge:
  """Runs AdamW over shuffled epochs, batches dispatched ahead."""
  steps_per_epoch = len(data.images) // recipe.batch_size
  num_steps = steps_per_epoch * recipe.num_epochs
  rate = optax.warmup_cosine_decay_schedule(
    0.0, recipe.learning_rate, min(50, num_steps // 5), num_steps
  )
  optimizer = optax.adamw(rate, weight_decay=0.05)
  state = optimizer.init(judge)

  @jax.jit
  def step(
    judge: judge_network.Judge,
    state: optax.OptState,
    batch: judge_frames_lib.SyntheticFrames,
    key: PRNGKeyArray,
  ) -> tuple[judge_network.Judge, optax.OptState]:
    def loss(judge: judge_network.Judge) -> Float[Array, ""]:
      frames = batch.images.astype(jnp.float32) / 255
      return _loss(*judge(frames, rngs=nnx.Rngs(dropout=key)), batch=batch)

    updates, state = optimizer.update(jax.grad(loss)(judge), state, judge)
    return optax.apply_updates(judge, updates), state

  for _ in range(recipe.num_epochs):
    order = rng.permutation(len(data.images))
    for i in range(steps_per_epoch):
      rows = order[i * recipe.batch_size :][: recipe.batch_size]
      # There is one transfer ahead of each step, which then only dispatches.
      batch = jax.device_put(type(data)(*(array[rows] for array in data)))
      key, step_key = jax.random.split(key)
      judge, state = step(judge, state, batch, step_key)
  return judge


def _loss(
  identity_logits: Float[Array, "n 10"],
  content_logits: Float[Array, "n 3"],
  *,
  batch: judge_frames_lib.SyntheticFrames,
) -> Float[Array, ""]:
  """Cross-entropies; identity counts only where one whole digit is shown."""
  # Smooth targets keep probabilities honest on damaged frames.
  targets = optax.smooth_labels(jax.nn.one_hot(batch.identity, 10), 0.1)
  identity = optax.softmax_cross_entropy(identity_logits, targets)
  whole = batch.content == judge_frames_lib.WHOLE
  content = optax.softmax_cross_entropy_with_integer_labels(
    content_logits, batch.content
  )
  # A batch may hold no whole digit, so the divisor is never 0.
  return (identity * whole).sum() / (whole.sum() + 1) + content.mean()


def _fingerprint(seed: int, recipe: JudgeRecipe) -> str:
  """Returns a hash of everything that decides what a judge becomes."""
  fields = [_VERSION, seed, dataclasses.asdict(recipe)]
  digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
  # The digits come from scikit-learn, and a judge that was trained on others
  # must not be loaded.
  digest.update(world.load_sprites("train")[0].tobytes())
  return digest.hexdigest()


def _read(
  path: str, judge: judge_network.Judge, fingerprint: str
) -> tuple[judge_network.Judge, JudgeReport] | None:
  """Loads a cache file into `judge`, or returns None if it does not fit."""
  leaves, tree = jax.tree.flatten(judge)
  if not os.path.lexists(path):
    return None
  try:
    file = dict(array_files.read(pathlib.Path(path)))
    if str(file["fingerprint"]) != fingerprint:
      logging.info("judge: %s is of another recipe; training anew.", path)
      return None
    report = JudgeReport(**json.loads(str(file["report"])))
    found = [file[f"w{i}"] for i in range(len(leaves))]
    if [x.shape for x in found] != [x.shape for x in leaves]:
      raise ValueError("its arrays have other shapes")
    stored = jax.device_put(found)
  except Exception as error:  # whatever is wrong with it, a new one helps
    logging.warning("judge: %s is damaged (%s); training anew.", path, error)
    return None
  return jax.tree.unflatten(tree, stored), report


def _write(
  path: str, judge: judge_network.Judge, report: JudgeReport, fingerprint: str
) -> None:
  """Writes the cache under a temporary name and renames it when complete."""
  leaves = enumerate(jax.tree.leaves(judge))
  arrays: dict[str, Any] = {f"w{i}": np.asarray(leaf) for i, leaf in leaves}
  arrays["fingerprint"] = np.array(fingerprint)
  arrays["report"] = np.array(json.dumps(dataclasses.asdict(report)))
  try:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
      # Given a path, `savez` would append .npz to it, and the rename would find
      # no file.
      np.savez(file, **arrays)
  except OSError as error:  # the judge is as good without its cache
    logging.warning("judge: cannot write %s (%s).", path, error)
