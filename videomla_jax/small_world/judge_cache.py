"""Keeps trained judges in files, each known by what it was trained on."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from absl import logging
from flax import nnx
import jax
from jaxtyping import Num
import numpy as np

from videomla_jax.storage import array_files
from videomla_jax.storage import atomic


def fingerprint(
  version: int, seed: int, recipe: Any, handwriting: Num[np.ndarray, "..."]
) -> str:
  """Returns a hash of everything that decides what a judge becomes.

  Args:
    version: Number of the code that trains it.
    seed: Seed of data, weights and order.
    recipe: Dataclass of sizes and rates.
    handwriting: What it learns from. It comes from scikit-learn, and a judge
      that was trained on another one must not be loaded.
  """
  fields = [version, seed, dataclasses.asdict(recipe)]
  digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
  digest.update(handwriting.tobytes())
  return digest.hexdigest()


def load_or_make[Network: nnx.Module, Report](
  path: str | os.PathLike[str],
  *,
  empty: Network,
  report_of: Callable[[Mapping[str, Any]], Report],
  fingerprint: str,
  make: Callable[[], tuple[Network, Report]],
) -> tuple[Network, Report]:
  """Loads a cached judge, or trains one and caches it.

  Args:
    path: The `.npz` cache; it is written whole or not at all. A file of
      another fingerprint, or one that is damaged, is replaced.
    empty: An untrained judge.
    report_of: Makes the report, a dataclass, of its fields.
    fingerprint: Hash of everything that decides what a judge becomes.
    make: Trains a judge and reports on it.

  Returns:
    The judge and the report of its training.
  """
  path = os.fspath(path)
  if (cached := _read(path, empty, report_of, fingerprint)) is not None:
    return cached
  judge, report = make()
  _write(path, judge, report, fingerprint)
  return judge, report


def _read[Network: nnx.Module, Report](
  path: str,
  judge: Network,
  report_of: Callable[[Mapping[str, Any]], Report],
  fingerprint: str,
) -> tuple[Network, Report] | None:
  """Loads a cache file into `judge`, or returns None if it does not fit."""
  leaves, tree = jax.tree.flatten(judge)
  if not os.path.lexists(path):
    return None
  try:
    file = dict(array_files.read(pathlib.Path(path)))
    if str(file["fingerprint"]) != fingerprint:
      logging.info("judge: %s is of another recipe; training anew.", path)
      return None
    report = report_of(json.loads(str(file["report"])))
    found = [file[f"w{i}"] for i in range(len(leaves))]
    if [x.shape for x in found] != [x.shape for x in leaves]:
      raise ValueError("its arrays have other shapes")
    stored = jax.device_put(found)
  except Exception as error:  # whatever is wrong with it, a new one helps
    logging.warning("judge: %s is damaged (%s); training anew.", path, error)
    return None
  return jax.tree.unflatten(tree, stored), report


def _write(path: str, judge: nnx.Module, report: Any, fingerprint: str) -> None:
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
