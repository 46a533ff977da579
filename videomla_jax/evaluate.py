"""Measures models against known truth, and videos by VBench's protocol.

  python -m videomla_jax.evaluate --config=configs/evaluate.py
  python -m videomla_jax.evaluate --config=configs/evaluate.py:stages \
    --config.checkpoints.student="runs/a/dmd/model;runs/b/dmd/model"
  python -m videomla_jax.evaluate --config=configs/evaluate.py:vbench
  python -m videomla_jax.evaluate --config=configs/evaluate.py:videos \
    --config.videos=FOLDER
  python -m videomla_jax.evaluate \
    --config=configs/evaluate.py:colour,model=runs/dmd/model,windows

The last three are in `videomla_jax/quality/`: one makes the videos of a list of
prompts, one measures those of a folder, and one judges a model of the colour
world. The first two measure models of the small world by identity, count,
motion and drift.

Writes a Markdown table, a JSON file with every video's measures and a contact
sheet per model. Prompts are those that training never showed; the row of real
clips says what a perfect model would get from the same judge. Several
checkpoints of a row are training seeds: the row is their mean, and its
deviation that of the seeds.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import pathlib
import time
from typing import Annotated

import jax
from jaxtyping import Float
import numpy as np

from videomla_jax import shapes
from videomla_jax.costs import attention_choice
from videomla_jax.diffusion import sampling
from videomla_jax.generation import contact_sheet
from videomla_jax.generation import pixel_stream
from videomla_jax.generation import pixels as pixels_lib
from videomla_jax.generation import request as request_lib
from videomla_jax.generation import sampler_choice
from videomla_jax.generation import sources
from videomla_jax.generation import unused
from videomla_jax.measuring import record
from videomla_jax.quality import colour
from videomla_jax.quality import found_videos
from videomla_jax.quality import protocol
from videomla_jax.runtime import cli
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values
from videomla_jax.runtime import progress_bar
from videomla_jax.small_world import judge as judge_lib
from videomla_jax.small_world import measures as measures_lib
from videomla_jax.small_world import prompts as prompts_lib
from videomla_jax.storage import atomic
from videomla_jax.storage import output_folder

Videos = Float[np.ndarray, "V t h w 1"]
Measures = dict[str, Float[np.ndarray, "V"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What is evaluated; the fields are the keys of `configs/evaluate.py`.

  Attributes:
    checkpoints: By the name of a row of the table, its checkpoints: training
      seeds, separated by semicolons.
    videos_per_prompt: Videos of each held-out prompt.
    seconds: Length of every video.
    seed: Seed of the noise and of the real clips.
    products: How all models multiply, a name in `quantise.PRODUCTS`; empty is
      the dtype of each.
    judge: File of the judge, which is trained if it is missing.
    sampler: How videos are denoised.
    output: Where the results go.
  """

  checkpoints: Mapping[str, tuple[config_values.Path, ...]]
  videos_per_prompt: Annotated[int, config_values.Range(1, 10_000)]
  seconds: config_values.Seconds
  seed: config_values.Seed
  products: str
  judge: config_values.Path
  sampler: sampler_choice.SamplerChoice
  output: request_lib.Output

  def __post_init__(self) -> None:
    if not self.checkpoints or not self.judge:
      raise ValueError(
        "checkpoints or judge is empty; name a checkpoint for each row of the"
        " table, and a file for the judge."
      )
    for row in self.checkpoints:
      # A row has a contact sheet under its name.
      output_folder.check_name(row, field="name of a row in checkpoints")

  def sampler_of(self, source: sources.Source) -> sampling.Sampler:
    """Builds the sampler for a model; raises `ValueError` if none is known."""
    return self.choice_for(source).resolve(
      shift=source.shift, distilled=source.distilled
    )

  def choice_for(self, source: sources.Source) -> sampler_choice.SamplerChoice:
    """Returns what of the choice concerns a model."""
    if source.distilled and self.sampler.kind == "auto":
      # Number of steps and guidance are those of models that need many steps.
      return sampler_choice.SamplerChoice(
        shift=self.sampler.shift, commit=self.sampler.commit
      )
    return self.sampler


def generate_videos(
  source: sources.SmallSource,
  prompts: Sequence[prompts_lib.Prompt],
  request: Evaluation,
  *,
  name: str,
) -> Videos:
  """Generates one video per prompt, in [0, 1], with a progress bar.

  Args:
    source: The model.
    prompts: One per video.
    request: Length, seed and sampler.
    name: What the progress bar says.
  """
  num_frames = request_lib.count_frames(request.seconds, source.fps)
  sampler = request.sampler_of(source)
  negative = None if sampler.guidance is None else ""
  stream = pixel_stream.PixelStream(
    source.load(),
    source.embed([p.text() for p in prompts], negative=negative),
    jax.random.key(request.seed),
    window=source.window,
    sampler=sampler,
    num_frames=num_frames,
    as_bytes=False,
  )
  pieces = []
  with progress_bar.Progress(num_frames, name, unit="frame") as progress:
    for pixels in stream:
      # Pixels leave the device chunk by chunk, so no whole video is on it.
      pieces.append(pixels)
      progress.update(pixels.shape[1])
  return np.concatenate(pieces, axis=1)


def _attention(
  source: sources.SmallSource, request: Evaluation, *, videos: int
) -> attention_choice.Choices:
  """Says which attention a model takes to generate its videos."""
  pipeline = source.load()
  config = pipeline.dit.config
  num_frames = request_lib.count_frames(request.seconds, source.fps)
  return attention_choice.of_rollout(
    config,
    rows=videos * request.sampler_of(source).rows_per_video,
    tokens=shapes.token_grid(*pipeline.frame[:2], patch=config.patch).tokens,
    window=source.window,
    max_frames=pipeline.latents_for(num_frames),
  )


def _open(request: Evaluation) -> dict[str, list[sources.SmallSource]]:
  """Opens the models of each row, one per training seed."""
  models = {
    name: [
      sources.in_float8(sources.open_small(path), request.products)
      for path in paths
    ]
    for name, paths in request.checkpoints.items()
  }
  every = [source for seeds in models.values() for source in seeds]
  for source in every:
    request.sampler_of(source)  # An unknown sampler is refused here.
  if all(request.choice_for(source) != request.sampler for source in every):
    unused.refuse(
      {
        f"sampler.{name}": getattr(request.sampler, name)
        for name in ("num_steps", "guidance")
      },
      why="on models that are all distilled",
    )
  return models


def _summary(seeds: Sequence[Measures]) -> dict[str, dict[str, float]]:
  """Summarises the videos of one training seed, or the means of several."""
  # Training seeds are independent of each other; videos of one seed are not.
  if len(seeds) == 1:
    return measures_lib.summarise(seeds[0])
  means = {
    name: np.array([one[name].mean() for one in seeds]) for name in seeds[0]
  }
  return measures_lib.summarise(means)


def _write_sheet(
  path: pathlib.Path,
  videos: Videos,
  prompts: Sequence[prompts_lib.Prompt],
  fps: float | int,
) -> None:
  """Draws the first ten videos, which show each held-out prompt once."""
  frames = np.asarray(pixels_lib.to_uint8(videos[:10]))
  words = [p.text() for p in prompts[:10]]
  contact_sheet.write_png(path, contact_sheet.draw(frames, words, fps=fps))


SUITES: dict[
  str,
  type[protocol.Protocol | found_videos.FoundVideos | colour.ColourWorld],
] = {
  "vbench": protocol.Protocol,
  "videos": found_videos.FoundVideos,
  "colour": colour.ColourWorld,
}


def evaluate(config: config_reader.Values) -> dict[str, object]:
  """Runs what a config asks for.

  Args:
    config: Values of the keys in `configs/evaluate.py`.

  Returns:
    The JSON report.

  Raises:
    ValueError: If a checkpoint, a length, a list of prompts, a video or the
      output folder cannot work.
  """
  values = dict(config.items())
  name = values.pop("suite", None)
  if name is None:
    return _small_world(config)
  if name not in SUITES:
    raise ValueError(f"suite={name!r} is unknown; use one of {[*SUITES]}.")
  suite = config_reader.read(SUITES[str(name)], values)
  if not suite.record:
    return suite.run()
  path = output_folder.check_file(suite.record)
  record.read(path)  # A damaged one is found before the work.
  with record.written_alone(path):
    report = suite.run()
    record.add(path, record.Session.here(), suite.lines(report))
  return report


def _small_world(config: config_reader.Values) -> dict[str, object]:
  """Runs every row of the table of the small world."""
  request = config_reader.read(Evaluation, config)
  models = _open(request)
  # Training a judge takes minutes, so mistakes are looked for before it.
  folder = output_folder.check(request.output.folder)
  name = request.output.name
  for file in (folder / f"{name}.md", folder / f"{name}.json", request.judge):
    output_folder.check_file(file)
  judge, judge_report = judge_lib.load_or_train_judge(request.judge)
  # Training never showed these prompts: what is measured is not memory.
  prompts = [*prompts_lib.held_out_prompts()] * request.videos_per_prompt
  fps = next(iter(models.values()))[0].fps
  num_frames = request_lib.count_frames(request.seconds, fps)
  real = measures_lib.real_videos(
    prompts, num_frames=num_frames, seed=request.seed
  )
  measures = {"real": [measures_lib.measure(real, prompts, judge, fps)]}
  seconds: dict[str, list[float]] = {}
  attention = {
    name: _attention(seeds[0], request, videos=len(prompts))
    for name, seeds in models.items()
  }
  for name, choices in attention.items():
    for line in attention_choice.lines(choices):
      print(f"{name}: {line}", flush=True)
  for name, seeds in models.items():
    measures[name], seconds[name] = [], []
    for i, source in enumerate(seeds):
      started = time.monotonic()
      videos = generate_videos(source, prompts, request, name=name)
      seconds[name].append(round(time.monotonic() - started, 1))
      measures[name].append(measures_lib.measure(videos, prompts, judge, fps))
      # Sheets are looked at one by one, so every seed has its own.
      suffix = f"{name}-{i}" if len(seeds) > 1 else name
      _write_sheet(
        folder / f"{request.output.name}-{suffix}.png", videos, prompts, fps
      )
  rows = {n: _summary(m) for n, m in measures.items()}
  table = measures_lib.table(rows)
  report = dict(
    videos=len(prompts),
    frames=num_frames,
    sampler={
      name: config_reader.to_dict(
        request.choice_for(seeds[0]).settle(
          shift=seeds[0].shift, distilled=seeds[0].distilled
        )
      )
      for name, seeds in models.items()
    },
    checkpoints={n: "; ".join(x) for n, x in request.checkpoints.items()},
    attention=attention,
    seed=request.seed,
    judge=dataclasses.asdict(judge_report),
    generation_seconds=seconds,
    summary=rows,
    per_video={
      n: [{k: np.asarray(v).tolist() for k, v in one.items()} for one in m]
      for n, m in measures.items()
    },
  )
  name = request.output.name
  atomic.write_text(folder / f"{name}.md", table + "\n")
  text = json.dumps(report, indent=1, default=float) + "\n"
  atomic.write_text(folder / f"{name}.json", text)
  print(table, f"seconds of generation: {seconds}", sep="\n", flush=True)
  return report


if __name__ == "__main__":
  cli.run(evaluate)
