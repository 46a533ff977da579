"""A prepared data set that no encoder was needed for."""

import hashlib
import pathlib

import numpy as np

from videomla_jax.data import dataset
from videomla_jax.data import encode
from videomla_jax.data import filters
from videomla_jax.data import plans
from videomla_jax.data import preparation
from videomla_jax.data import record_files
from videomla_jax.data import records
from videomla_jax.data import sealed_json
from videomla_jax.data import shards
from videomla_jax.data import table
from videomla_jax.media import clips

LATENTS = (2, 3, 3, 4)
WIDTH = 6
_SHAPE = records.RecordShape(latents=LATENTS, text_width=WIDTH)


def write(
  root: pathlib.Path, rng: np.random.Generator, *, digests: bool = True
) -> pathlib.Path:
  """Writes a data set of two shards.

  Args:
    root: Root of data sets.
    rng: Draws latents and embeddings.
    digests: Whether it has a list of digests; those of older versions do not.

  Returns:
    The data set's own folder.
  """
  settings = shards.Settings(
    encoder=encode.EncoderConfig(checkpoint=encode.RANDOM),
    sizes=_SHAPE,
    clip=clips.ClipShape(height=24, width=24, num_frames=5, fps=8.0),
    filters=filters.Filters(),
  )
  items = [
    table.Item(index=i, video=f"{i}.mp4", caption=f"text {i}") for i in range(4)
  ]
  plan = plans.plan_shards(
    items,
    {},
    videos="videos",
    output=root,
    settings=settings,
    shard_size=2,
    test_fraction=0.0,
  )
  preparation.begin(plan)
  for job in plan.jobs:
    _write_shard(job, rng)
  preparation.finish(plan)
  if not digests:
    (plan.folder / dataset.DIGESTS_FILE).unlink()
  return plan.folder


def _write_shard(job: shards.Job, rng: np.random.Generator) -> None:
  text = rng.standard_normal((3, WIDTH)).astype(np.float32)
  if job.split == shards.NULL_TEXT:
    np.save(job.data, record_files.pack(text))
  else:
    feature = records.features(_SHAPE)
    facts = clips.Facts(24, 24, 8.0, 1.0)
    made = [
      records.clip_example(
        item,
        text,
        rng.standard_normal(LATENTS).astype(np.float32),
        facts,
        start=0.0,
      )
      for item in job.items
    ]
    record_files.write(job.data, map(feature.serialize_example, made))
  data = job.data.read_bytes()
  counts = dict(clips=len(job.items), inputs=len(job.items), max_tokens=3)
  counts |= dict(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
  sealed_json.write(job.counts, counts)
