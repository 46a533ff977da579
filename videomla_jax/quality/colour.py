"""Judges a model of the colour world, under its own window and under others.

Videos of held-out prompts are measured by `small_world/colour/measures.py`, as
are real clips of the same prompts. Under other windows the model makes videos
of the same prompts from the same noise, so that differences in what it
remembers of a digit behind the wall are taken video by video.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import pathlib
import time
from typing import Annotated, Any

import numpy as np

from videomla_jax.costs import attention_choice
from videomla_jax.generation import contact_sheet
from videomla_jax.generation import job as job_lib
from videomla_jax.generation import networks as networks_lib
from videomla_jax.generation import pipeline as pipeline_lib
from videomla_jax.generation import request as request_lib
from videomla_jax.generation import sampler_choice
from videomla_jax.generation import sources
from videomla_jax.quality import colour_videos
from videomla_jax.quality import protocol
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values
from videomla_jax.small_world import worlds
from videomla_jax.small_world.colour import glyphs
from videomla_jax.small_world.colour import judge as judge_lib
from videomla_jax.small_world.colour import measures as measures_lib
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import prompts as prompts_lib
from videomla_jax.small_world.colour import summaries
from videomla_jax.storage import atomic
from videomla_jax.storage import output_folder

Report = dict[str, Any]

_SAMPLER = sampler_choice.SamplerChoice()
_OUTPUT = request_lib.Output(name="colour")
_SHEET_ROWS, _SHEET_COLUMNS = 8, 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
  """How the reader of digits is trained where its file is missing.

  Attributes:
    num_crops: Synthetic crops.
    num_epochs: Passes over them.
  """

  num_crops: Annotated[int, config_values.Range(128, 1_000_000)] = 32_000
  num_epochs: Annotated[int, config_values.Range(1, 1000)] = 4

  def load_or_train(self, path: str) -> tuple[glyphs.Reader, judge_lib.Report]:
    """Returns the reader of a file, which is written if it is missing.

    Args:
      path: The file; that of another recipe is replaced.
    """
    recipe = judge_lib.Recipe(
      num_crops=self.num_crops, num_epochs=self.num_epochs
    )
    return judge_lib.load_or_train(path, recipe=recipe)


_READER = Reader()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColourWorld:
  """Which model of the colour world is judged, and under which windows.

  Attributes:
    checkpoint: A model folder of `train` or `convert`.
    products: How the network multiplies, a name in `quantise.PRODUCTS`; empty
      is as the model is stored.
    videos: Videos of each row.
    batch: Videos made side by side.
    seconds: Length of every video, a second or more.
    seed: Seed of the noise of the first video, as of `sample`, and of the real
      clips.
    windows: Rows beside the model's own window, names in
      `colour_videos.WINDOWS`.
    sink_decay: Weight that the sink of the row "average" keeps per chunk.
    judge: File of the reader of digits, which is trained if it is missing.
    reader: How it is trained then.
    sampler: How videos are denoised.
    output: Where results go.
    record: File of JSON lines to which a line is added; empty for none.
  """

  checkpoint: config_values.Path
  products: str = ""
  videos: Annotated[int, config_values.Range(1, 1000)] = 48
  batch: Annotated[int, config_values.Range(1, 1000)] = 24
  seconds: config_values.Seconds = 20.0
  seed: config_values.Seed = 0
  windows: tuple[str, ...] = ()
  sink_decay: Annotated[float | int, config_values.Range(0, 1)] = (
    colour_videos.DECAY
  )
  judge: config_values.Path
  reader: Reader = _READER
  sampler: sampler_choice.SamplerChoice = _SAMPLER
  output: request_lib.Output = _OUTPUT
  record: config_values.Path = ""

  def __post_init__(self) -> None:
    if not self.checkpoint or not self.judge:
      raise ValueError(
        "checkpoint or judge is empty; name the folder of a model, and a file"
        " for the judge."
      )
    frames = round(self.seconds * motion.FPS)
    if frames < motion.FPS:
      raise ValueError(
        f"seconds={self.seconds} is {frames} frames, and the judge needs the"
        f" {motion.FPS} of a second; use 1 or more."
      )
    if self.batch > self.videos:
      raise ValueError(
        f"batch={self.batch} must be at most videos={self.videos}; use that or"
        " less."
      )
    given = tuple(dict.fromkeys(x for x in self.windows if x))
    object.__setattr__(self, "windows", given)
    unknown = [x for x in given if x not in colour_videos.WINDOWS]
    if unknown:
      raise ValueError(
        f"windows has {unknown[0]!r:.80}, which is unknown; use some of"
        f" {'; '.join(colour_videos.WINDOWS)}."
      )
    if self.sink_decay != colour_videos.DECAY and "average" not in given:
      raise ValueError(
        f"sink_decay={self.sink_decay} has no effect without the window"
        " 'average'; leave it out, or add that to windows."
      )

  def run(self) -> Report:
    """Makes the videos of every row, and writes tables, numbers and sheets.

    Raises:
      ValueError: If the model is of another world, a window or the sampler
        cannot work, or results cannot be written.
    """
    prompts = colour_videos.held_out(self.videos)
    job = self._prepare([x.text() for x in prompts])
    pipeline = job.source.load()
    rows = self._rows(job, pipeline)
    folder = self._open_folder([*rows, "real"])
    reader, trained = self.reader.load_or_train(self.judge)
    print(trained.text(), flush=True)
    made: dict[str, summaries.Measures] = {}
    seconds: dict[str, float] = {}
    for name, row in rows.items():
      for line in attention_choice.lines(self._attention(row, pipeline)):
        print(f"{name}: {line}", flush=True)
      started = time.monotonic()
      videos = colour_videos.make(row, pipeline, batch=self.batch, name=name)
      seconds[name] = round(time.monotonic() - started, 1)
      made[name] = self._measured(name, videos, prompts, reader, folder)
    clips = colour_videos.real_clips(
      prompts, num_frames=job.num_frames, seed=self.seed, batch=self.batch
    )
    made["real"] = self._measured("real", clips, prompts, reader, folder)
    report = self._described(rows) | dict(
      videos_with_wall=sum(bool(x.wall) for x in prompts),
      attention={n: self._attention(x, pipeline) for n, x in rows.items()},
      judge=dataclasses.asdict(trained),
      generation_seconds=seconds,
      summary=_summaries(made),
      per_video={
        name: {key: _plain(value) for key, value in values.items()}
        for name, values in made.items()
      },
    )
    text = _page(report, made)
    atomic.write_text(folder / f"{self.output.name}.md", text)
    atomic.write_text(
      folder / f"{self.output.name}.json",
      json.dumps(report, indent=1, allow_nan=False) + "\n",
    )
    print(text, f"seconds of generation: {seconds}", sep="\n", flush=True)
    return report

  def _described(self, rows: Mapping[str, job_lib.Job]) -> Report:
    """Returns what made the videos of all rows."""
    job = rows["model"]
    return dict(
      checkpoint=self.checkpoint,
      weights=protocol.weights_of(job.request.networks),
      products=self.products,
      videos=self.videos,
      batch=self.batch,
      frames=job.num_frames,
      prompts=[*job.request.prompts],
      seed=self.seed,
      seeds=[*job.seeds],
      sampler=config_reader.to_dict(job.choice),
      windows={
        name: config_reader.to_dict(row.request.window)
        | dict(cache_dtype=row.request.cache_dtype or None)
        for name, row in rows.items()
      },
      same_as_own=[x for x in self.windows if x not in rows],
    )

  def _attention(
    self, row: job_lib.Job, pipeline: pipeline_lib.Pipeline
  ) -> attention_choice.Choices:
    """Says which attention the videos of a row take."""
    first = colour_videos.part_of(row, range(self.batch), self.batch)
    return first.attention(pipeline)

  def lines(self, made: Report) -> list[dict[str, Any]]:
    """Returns the line of a record that says what was measured.

    Args:
      made: What `run` returned.
    """
    kept = (
      *("checkpoint", "weights", "sampler", "windows", "frames", "seed"),
      *("videos", "videos_with_wall", "summary"),
    )
    return [
      dict(name="measures", kind="colour world", **{k: made[k] for k in kept})
    ]

  def _prepare(self, texts: Sequence[str]) -> job_lib.Job:
    """Opens the model under its own window, and checks what rows share."""
    networks = networks_lib.Networks(
      checkpoint=self.checkpoint, products=self.products
    )
    source = sources.open_source(networks)
    if (
      not isinstance(source, sources.SmallSource)
      or source.model.config.world != worlds.COLOUR_WORLD
    ):
      raise ValueError(
        f"checkpoint={self.checkpoint!r} is no model of the colour world;"
        " other models are measured by configs/evaluate.py without the argument"
        " colour, or by its variant vbench."
      )
    request = request_lib.Request(
      networks=networks,
      prompts=tuple(texts),
      seconds=self.seconds,
      seed=self.seed,
      sampler=self.sampler,
      window=source.window,
      output=request_lib.VideoOutput(scale=1),
    )
    return job_lib.prepare(request, source)

  def _rows(
    self, job: job_lib.Job, pipeline: pipeline_lib.Pipeline
  ) -> dict[str, job_lib.Job]:
    """Returns the job of every row but the real one, the model's own first."""
    own, rows = job.request.window, {"model": job}
    latents = pipeline.latents_for(job.num_frames)
    if self.windows and (
      own.local_frames is None or latents <= own.local_frames
    ):
      raise ValueError(
        f"windows={'; '.join(self.windows)} has no effect on"
        f" seconds={self.seconds}, of which the model's own window sees all"
        f" {latents} latent frames; use longer videos, or leave it out."
      )
    for name in self.windows:
      window = colour_videos.WINDOWS[name](own, float(self.sink_decay))
      if window == own:
        print(f"{name}: this is the model's own window", flush=True)
        continue
      # An average moves by steps that 16 bits round away.
      dtype = "float32" if window.sink == "average" else ""
      rows[name] = dataclasses.replace(
        job,
        request=dataclasses.replace(
          job.request, window=window, cache_dtype=dtype
        ),
      )
    return rows

  def _open_folder(self, rows: Sequence[str]) -> pathlib.Path:
    """Proves that all results can be written, and returns their folder."""
    folder = output_folder.check(self.output.folder)
    name = self.output.name
    ends = [".md", ".json", *(f"-{row}.png" for row in rows)]
    for end in ends:
      output_folder.check_file(folder / f"{name}{end}")
    output_folder.check_file(self.judge)
    return folder

  def _measured(
    self,
    name: str,
    videos: colour_videos.Videos,
    prompts: Sequence[prompts_lib.Prompt],
    reader: glyphs.Reader,
    folder: pathlib.Path,
  ) -> summaries.Measures:
    """Draws the sheet of a row, and takes its measures."""
    chosen = np.linspace(0, videos.shape[1] - 1, _SHEET_COLUMNS)
    frames = [*dict.fromkeys(chosen.round().astype(int).tolist())]
    sheet = contact_sheet.draw(
      videos[:_SHEET_ROWS, frames],
      [x.text() for x in prompts[:_SHEET_ROWS]],
      fps=motion.FPS,
      frame_indices=frames,
    )
    contact_sheet.write_png(folder / f"{self.output.name}-{name}.png", sheet)
    return measures_lib.measure(videos, prompts, reader)


def _summaries(
  made: Mapping[str, summaries.Measures],
) -> dict[str, dict[str, dict[str, float | int | None]]]:
  """Returns means and intervals as a JSON file has them."""
  return {
    name: {
      key: {k: None if np.isnan(x) else x for k, x in summary._asdict().items()}
      for key, summary in summaries.summarise(values).items()
    }
    for name, values in made.items()
  }


def _plain(values: np.ndarray) -> list[float | None]:
  """Returns numbers with None where a measure does not apply."""
  return [None if np.isnan(x) else float(x) for x in values]


def _page(report: Report, made: Mapping[str, summaries.Measures]) -> str:
  """Writes the table of all measures, and that of memory."""
  real = {"real": made["real"]}
  ordered = real | {k: v for k, v in made.items() if k != "real"}
  rows = {name: summaries.summarise(x) for name, x in ordered.items()}
  lines = [
    f"`{report['checkpoint']}`: {report['videos']} videos of"
    f" {report['frames']} frames, {report['videos_with_wall']} of them with a"
    " wall. Intervals are those of 95 %.",
    "",
    summaries.table(rows),
    "",
    "Memory in the whole video; differences are from the model under its own"
    " window, video by video.",
    "",
    summaries.memory_table(made),
  ]
  for name in report["same_as_own"]:
    lines += ["", f"`{name}` is the model's own window."]
  return "\n".join(lines) + "\n"
