"""Builds the data set of a small world once, and opens its splits."""

from collections.abc import Sequence
import contextlib
import io
import os
import pathlib
import time

from absl import logging
import numpy as np
import tensorflow_datasets as tfds

from videomla_jax.data import dataset
from videomla_jax.data import record_source
from videomla_jax.small_world import stored_world
from videomla_jax.small_world import world
from videomla_jax.storage import ordinary_files


def open_split(
  data_dir: str | os.PathLike[str],
  *,
  split: str,
  config: stored_world.StoredWorldConfig,
  build: bool = True,
) -> Sequence[dict[str, np.ndarray | bytes | int]]:
  """Opens a split for random access, building the data set if it is missing.

  Args:
    data_dir: Root folder of TFDS data sets.
    split: "train" or "test".
    config: Which data set.
    build: Whether to build a missing data set.

  Returns:
    Records of "video" or "latents", "prompt" (UTF-8 bytes) and perhaps the
    truth of that world.

  Raises:
    ValueError: If the split is unknown, or the data set is missing and cannot
      or may not be built, or its files are damaged.
  """
  if split not in world.SPLITS:
    raise ValueError(
      f"split={split!r} must be one of {', '.join(world.SPLITS)}."
    )
  builder = config.builder(os.path.expanduser(data_dir))
  if not _is_built(builder):
    if not build:
      raise ValueError(
        f"data_dir={str(data_dir)!r} has no data set"
        f" {builder.name}/{config.name}; pass build=True to make it."
      )
    _build(builder)
  try:
    folder = pathlib.Path(builder.data_dir)
    info, features = (
      ordinary_files.read_json(folder / name) for name in dataset.TFDS_FILES
    )
    record_source.check_description(folder, info, features, name=builder.name)
    records = builder.as_data_source(split)
    records[0]  # opens the files, which otherwise happens in the first step
  except (RuntimeError, LookupError, OSError, ValueError) as error:
    raise ValueError(
      f"data_dir={builder.data_dir!r} is damaged ({error}); delete that folder"
      " and it will be built again."
    ) from error
  return records


def _is_built(builder: stored_world.StoredWorld) -> bool:
  """Says whether the complete folder exists: it is renamed when complete."""
  return os.path.isdir(builder.data_dir)


def _build(builder: stored_world.StoredWorld) -> None:
  """Builds the data set; a half-built one is never seen by anybody."""
  start = time.monotonic()
  tfds.disable_progress_bar()  # the builder shows its own, shorter one
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # talks of downloads
      builder.download_and_prepare()
  except OSError as error:
    # Another process may have renamed its finished folder first.
    if not _is_built(builder):
      raise ValueError(
        f"data_dir={builder.data_dir!r} cannot be written ({error}); choose a"
        " writable folder with enough space."
      ) from error
  finally:
    tfds.enable_progress_bar()
  logging.info(
    "Built %s in %.1f s.", builder.data_dir, time.monotonic() - start
  )
