"""Turns videos and captions into the data set that Wan-sized training reads.

  python -m videomla_jax.prepare --config=configs/prepare.py \
    --config.videos=VIDEOS --config.table=OpenVid-1M.csv \
    --config.checkpoint=models/wan_1p3b --config.output=data

Clips become VAE latents, captions become UMT5 embeddings, both in ArrayRecord
shards that TFDS and Grain read. Starting the same command again goes on where
it stopped; what cannot be read is put aside with the reason, and the report
says what became of every input. `--config.prompts=FILE` in place of videos
makes data of prompts alone, which is all that stage 3 reads.
"""

from typing import Any

from videomla_jax.data import dataset
from videomla_jax.data import decode
from videomla_jax.data import encode
from videomla_jax.data import filters
from videomla_jax.data import preparation
from videomla_jax.data import records
from videomla_jax.data import shards
from videomla_jax.data import table
from videomla_jax.runtime import cli
from videomla_jax.runtime import metrics

RUNNERS = ("local", "beam")


def read_inputs(config: Any) -> table.Table:
  """The inputs of a config: a table, a folder or prompts.

  Raises:
    ValueError: If none or two are given, or it cannot be read.
  """
  if bool(config.prompts) == bool(config.videos):
    raise ValueError(
      f"prompts={config.prompts!r} and videos={config.videos!r}: give a file of"
      " prompts or a folder of videos, and not both."
    )
  if config.prompts:
    return table.read_prompts(config.prompts)
  if config.table:
    return table.read_table(config.table, videos=config.videos)
  return table.read_folder(config.videos)


def make_settings(config: Any) -> shards.Settings:
  """How every input is treated.

  Raises:
    ValueError: If sizes do not fit the VAE, or encoders are missing.
  """
  encoder = encode.Spec(
    checkpoint=config.checkpoint,
    embeddings=config.embeddings,
    vae_dtype=config.vae_dtype,
  )
  clip, latents = None, None
  if config.max_clips < 1:
    raise ValueError(f"max_clips={config.max_clips} must be positive; use 1.")
  if not config.prompts:
    clip = decode.ClipShape(**config.clip)
    latents = encoder.latent_shape(
      num_frames=clip.num_frames, height=clip.height, width=clip.width
    )
  return shards.Settings(
    encoder=encoder,
    sizes=records.Sizes(latents=latents, text_width=encoder.text_width()),
    clip=clip,
    filters=filters.Filters(**config.filters),
    max_clips=config.max_clips,
    negative_prompt=config.negative_prompt,
  )


def make_plan(config: Any) -> preparation.Plan:
  """All shards of a config; nothing is decoded or loaded yet.

  Raises:
    ValueError: If the config cannot work.
  """
  if config.runner not in RUNNERS:
    raise ValueError(
      f"runner={config.runner!r} is unknown; use one of {RUNNERS}."
    )
  settings = make_settings(config)
  items, excluded = filters.select(read_inputs(config), settings.filters)
  captions = [*dict.fromkeys(item.caption for item in items)]
  settings.encoder.require_texts([*captions, settings.negative_prompt])
  return preparation.plan(
    items,
    excluded,
    videos=config.videos,
    output=config.output,
    settings=settings,
    shard_size=config.shard_size,
    test_fraction=config.test_fraction,
  )


def prepare(config: Any) -> dict[str, Any]:
  """Makes a data set, or goes on with it.

  Args:
    config: See configs/prepare.py.

  Returns:
    The report.

  Raises:
    ValueError: If the config cannot work, or no input is left.
  """
  plan = make_plan(config)
  if preparation.is_finished(plan):
    report = dataset.read_report(plan.folder)
  else:
    if config.runner == "beam":
      preparation.run_beam(plan, config.beam_options)
    else:
      with metrics.Progress(plan.num_items, "prepare", unit="input") as bar:
        preparation.run(plan, bar.update)
    report = preparation.finish(plan)
  print(_summary(plan, report), flush=True)
  return report


def _summary(plan: preparation.Plan, report: dict[str, Any]) -> str:
  clips_made = ", ".join(f"{n} {split}" for split, n in report["clips"].items())
  left_out = dict(report["excluded"])
  if report["quarantined"]:
    left_out["unreadable"] = report["quarantined"]
  return (
    f"{plan.folder}: {clips_made} records of {report['used']} of"
    f" {report['inputs']} inputs; left out: {left_out or 'none'}"
  )


if __name__ == "__main__":
  cli.run(prepare)
