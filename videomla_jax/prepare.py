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

import dataclasses
from typing import Annotated, Any

from videomla_jax.data import dataset
from videomla_jax.data import disk
from videomla_jax.data import encode
from videomla_jax.data import filters as filters_lib
from videomla_jax.data import plans
from videomla_jax.data import preparation
from videomla_jax.data import records
from videomla_jax.data import shards
from videomla_jax.data import table as table_lib
from videomla_jax.generation import unused
from videomla_jax.media import clips
from videomla_jax.models import released
from videomla_jax.models import tokenizer
from videomla_jax.runtime import cli
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values
from videomla_jax.runtime import progress_bar

RUNNERS = ("local", "beam")
_CLIP_FRAMES = (81, 9)  # as in configs/prepare.py
_BEAM_OPTIONS = ("--runner=DirectRunner",)  # as in configs/prepare.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """Says what is prepared and how.

  The fields are the keys of `configs/prepare.py`.

  Attributes:
    videos: Folder of videos, or empty.
    table: Table of them, or empty for captions that lie beside the videos.
    prompts: Text file with one prompt per line, in place of videos.
    output: Root of TFDS data sets.
    checkpoint: Folder of `convert` with the encoders, or `encode.RANDOM`.
    embeddings: File of `embed` to take text from, or empty.
    negative_prompt: Text that guidance steers away from.
    vae_dtype: Type of the VAE's convolutions.
    clip: What every clip is brought to.
    max_clips: Most clips that are taken of one video.
    filters: What a video must fulfil.
    shard_size: Inputs of one shard.
    test_fraction: Chance of a video to be held out, 0..1.
    runner: "local", or "beam" for Apache Beam.
    beam_options: Options of Beam, such as "--runner=FlinkRunner".
  """

  videos: config_values.Path
  table: config_values.Path
  prompts: config_values.Path
  output: config_values.Path
  checkpoint: config_values.Path
  embeddings: config_values.Path
  negative_prompt: str
  vae_dtype: str
  clip: clips.ClipShape
  max_clips: int
  filters: filters_lib.Filters
  shard_size: Annotated[int, config_values.Range(1, 10**6)]
  test_fraction: Annotated[float | int, config_values.Range(0, 1)]
  runner: str
  beam_options: tuple[str, ...]

  def __post_init__(self) -> None:
    if self.max_clips < 1:
      raise ValueError(f"max_clips={self.max_clips} must be positive; use 1.")
    if self.runner not in RUNNERS:
      raise ValueError(
        f"runner={self.runner!r} is unknown; use one of {RUNNERS}."
      )
    if bool(self.prompts) == bool(self.videos):
      raise ValueError(
        f"prompts={self.prompts!r} and videos={self.videos!r}: give a file of"
        " prompts or a folder of videos, and not both."
      )
    self._refuse_unused()

  def _refuse_unused(self) -> None:
    """Refuses options of videos with prompts, and options of another runner."""
    if self.prompts:
      # The clip of a config has the sizes of some family.
      size = self.clip.height, self.clip.width, float(self.clip.fps)
      usual = {
        (x.height, x.width, float(x.fps)) for x in released.FAMILIES.values()
      }
      is_usual = size in usual and self.clip.num_frames in _CLIP_FRAMES
      unused.refuse(
        {
          "table": self.table,
          "max_clips": self.max_clips if self.max_clips > 1 else 0,
          "vae_dtype": self.vae_dtype.removeprefix("float32"),
          "filters": sorted(self.filters.asked()),
          "clip": "" if is_usual else dataclasses.asdict(self.clip),
        },
        why="with prompts in place of videos",
      )
    if self.runner != "beam" and self.beam_options != _BEAM_OPTIONS:
      raise ValueError(
        f"beam_options={self.beam_options} has no effect with"
        f" runner={self.runner!r}; leave it out, or use 'beam'."
      )

  def read_inputs(self) -> table_lib.Table:
    """Returns all inputs: of a table, a folder or a file of prompts.

    Raises:
      ValueError: If they cannot be read.
    """
    if self.prompts:
      return table_lib.read_prompts(self.prompts)
    if self.table:
      return table_lib.read_table(self.table, videos=self.videos)
    return table_lib.read_folder(self.videos)

  def settings(self) -> shards.Settings:
    """Returns how every input is treated.

    Raises:
      ValueError: If sizes do not fit the VAE, or encoders are missing.
    """
    encoder = encode.EncoderConfig(
      checkpoint=self.checkpoint,
      embeddings=self.embeddings,
      vae_dtype=self.vae_dtype,
    )
    # Prompts alone have no clips, so that no VAE is looked for.
    clip, latents = None, None
    if not self.prompts:
      clip = self.clip
      latents = encoder.latent_shape(
        num_frames=clip.num_frames, height=clip.height, width=clip.width
      )
    return shards.Settings(
      encoder=encoder,
      sizes=records.RecordShape(
        latents=latents, text_width=encoder.text_width()
      ),
      clip=clip,
      filters=self.filters,
      max_clips=self.max_clips,
      negative_prompt=self.negative_prompt,
    )


def make_plan(request: Request) -> plans.Plan:
  """Plans all shards; nothing is decoded or loaded yet.

  Args:
    request: What is prepared and how.

  Raises:
    ValueError: If the request cannot be met.
  """
  settings = request.settings()
  inputs = request.read_inputs()
  for note in inputs.notes:
    print(note, flush=True)
  items, excluded = filters_lib.select(inputs, settings.filters)
  captions = [*dict.fromkeys(item.caption for item in items)]
  # A caption that the file of embeddings lacks is found here, and not when
  # most of the clips have been decoded.
  settings.encoder.require_texts([*captions, settings.negative_prompt])
  return plans.plan_shards(
    items,
    excluded,
    videos=request.videos,
    output=request.output,
    settings=settings,
    shard_size=request.shard_size,
    test_fraction=request.test_fraction,
    set_aside=inputs.set_aside,
  )


def prepare(config: config_reader.Values) -> dict[str, Any]:
  """Makes a data set, or goes on with one that was interrupted.

  Args:
    config: What configs/prepare.py returns.

  Returns:
    The report, which also lies in the data set's folder.

  Raises:
    ValueError: If the config cannot work, or no input is left.
  """
  request = config_reader.read(Request, config)
  plan = make_plan(request)
  # A finished data set is described again, and no encoder is loaded.
  if preparation.is_finished(plan):
    report = dataset.read_report(plan.folder)
  else:
    with disk.explained(
      request.output,
      "change that and start the same command again, which keeps all shards"
      " that are finished",
    ):
      report = _make(request, plan)
  print(_summary(plan, report), flush=True)
  return report


def _make(request: Request, plan: plans.Plan) -> dict[str, Any]:
  """Makes all that is missing and returns the report."""
  with preparation.alone(plan):
    if preparation.is_finished(plan):  # by another process, just now
      return dataset.read_report(plan.folder)
    if request.runner == "beam":
      preparation.run_beam(plan, request.beam_options)
    else:
      with progress_bar.Progress(
        plan.num_items, "prepare", unit="input"
      ) as bar:
        preparation.run(plan, bar.update)
    return preparation.finish(plan)


def _summary(plan: plans.Plan, report: dict[str, Any]) -> str:
  """Says in one line what became of the inputs."""
  clips_made = ", ".join(f"{n} {split}" for split, n in report["clips"].items())
  left_out = dict(report["excluded"])
  if report["quarantined"]:
    left_out["unreadable"] = report["quarantined"]
  text = (
    f"{plan.folder}: {clips_made} records of {report['used']} of"
    f" {report['inputs']} inputs; left out: {left_out or 'none'}; changed:"
    f" {report.get('changed') or 'none'}"
  )
  if report["quarantined"]:
    text += f"; see {dataset.QUARANTINE_FILE}"
  # Reports of older versions do not count them.
  if report.get("cut"):
    text += (
      f"; {report['cut']} captions have more than {tokenizer.MAX_TOKENS} tokens"
      " and lost their ends"
    )
  return text


if __name__ == "__main__":
  cli.run(prepare)
