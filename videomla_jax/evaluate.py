"""Measures models against known truth: identity, count, motion, drift.

  python -m videomla_jax.evaluate --config=configs/evaluate.py
  python -m videomla_jax.evaluate --config=configs/evaluate.py:stages \
    --config.checkpoints.student="runs/a/dmd/model;runs/b/dmd/model"

Writes a Markdown table, a JSON file with every video's measures and a contact
sheet per model. Prompts are those that training never showed; the row of real
clips says what a perfect model would get from the same judge. Several
checkpoints of a row are training seeds: the row is their mean, and its
deviation that of the seeds.
"""

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
from jaxtyping import Float
import numpy as np

from videomla_jax import sample
from videomla_jax.generation import mp4
from videomla_jax.generation import pipeline
from videomla_jax.generation import sources
from videomla_jax.runtime import cli
from videomla_jax.runtime import metrics
from videomla_jax.small_world import judge as judge_lib
from videomla_jax.small_world import measures as measures_lib
from videomla_jax.small_world import prompts as prompts_lib
from videomla_jax.storage import atomic


def generate_videos(
  source: sources.SmallSource,
  prompts: list[prompts_lib.Prompt],
  config: Any,
  *,
  name: str,
) -> Float[np.ndarray, "V T h w 1"]:
  """Generates one video per prompt, in [0, 1], with a progress bar."""
  num_frames = sample.count_frames(config.seconds, source.fps)
  sampler = sample.make_sampler(config.sampler, source)
  negative = None if sampler.guidance is None else ""
  pieces = []
  with metrics.Progress(num_frames, name, unit="frame") as progress:
    for pixels in pipeline.roll_out(
      source.load(),
      source.embed([p.text() for p in prompts], negative=negative),
      jax.random.key(config.seed),
      window=source.model.config.window,
      sampler=sampler,
      num_frames=num_frames,
    ):
      pieces.append(np.asarray(pixels))
      progress.update(pixels.shape[1])
  return np.concatenate(pieces, axis=1)


def _load(config: Any) -> dict[str, list[sources.SmallSource]]:
  """The models of each row, one per training seed."""
  models = {
    name: [sources.open_small(path.strip()) for path in paths.split(";")]
    for name, paths in config.checkpoints.items()
  }
  for seeds in models.values():
    sample.make_sampler(config.sampler, seeds[0])
  return models


def _summary(seeds: list[dict[str, np.ndarray]]) -> dict[str, dict[str, float]]:
  """Over the videos of one training seed, or over the means of several."""
  if len(seeds) == 1:
    return measures_lib.summarise(seeds[0])
  means = {
    name: np.array([one[name].mean() for one in seeds]) for name in seeds[0]
  }
  return measures_lib.summarise(means)


def _write_sheet(
  path: pathlib.Path,
  videos: Float[np.ndarray, "V T h w 1"],
  prompts: list[prompts_lib.Prompt],
  fps: float | int,
) -> None:
  """The first ten videos: each held-out prompt once."""
  frames = mp4.to_uint8(videos[:10])
  words = [p.text() for p in prompts[:10]]
  mp4.write_png(path, mp4.contact_sheet(frames, words, fps=fps))


def evaluate(config: Any) -> dict[str, Any]:
  """Runs every row of the table.

  Args:
    config: See configs/evaluate.py.

  Returns:
    The JSON report.

  Raises:
    ValueError: If a checkpoint, a length or the output folder cannot work.
  """
  models = _load(config)
  if config.videos_per_prompt < 1 or config.seconds <= 0:
    raise ValueError(
      f"videos_per_prompt={config.videos_per_prompt} and "
      f"seconds={config.seconds} must be positive."
    )
  folder = mp4.check_output_folder(config.output.folder)
  judge, judge_report = judge_lib.load_or_train_judge(config.judge)
  prompts = [*prompts_lib.held_out_prompts()] * config.videos_per_prompt
  fps = next(iter(models.values()))[0].fps
  num_frames = round(config.seconds * fps)
  real = measures_lib.real_videos(
    prompts, num_frames=num_frames, seed=config.seed
  )
  measures = {"real": [measures_lib.measure(real, prompts, judge, fps)]}
  seconds: dict[str, list[float]] = {}
  for name, seeds in models.items():
    measures[name], seconds[name] = [], []
    for i, source in enumerate(seeds):
      started = time.monotonic()
      videos = generate_videos(source, prompts, config, name=name)
      seconds[name].append(round(time.monotonic() - started, 1))
      measures[name].append(measures_lib.measure(videos, prompts, judge, fps))
      suffix = f"{name}-{i}" if len(seeds) > 1 else name
      _write_sheet(
        folder / f"{config.output.name}-{suffix}.png", videos, prompts, fps
      )
  rows = {n: _summary(m) for n, m in measures.items()}
  table = measures_lib.table(rows)
  report = dict(
    videos=len(prompts),
    frames=num_frames,
    sampler=config.sampler.to_dict(),
    checkpoints=config.checkpoints.to_dict(),
    seed=config.seed,
    judge=dataclasses.asdict(judge_report),
    generation_seconds=seconds,
    summary=rows,
    per_video={
      n: [{k: np.asarray(v).tolist() for k, v in one.items()} for one in m]
      for n, m in measures.items()
    },
  )
  name = config.output.name
  atomic.write_text(folder / f"{name}.md", table + "\n")
  text = json.dumps(report, indent=1, default=float) + "\n"
  atomic.write_text(folder / f"{name}.json", text)
  print(table, flush=True)
  print("seconds of generation:", seconds, flush=True)
  return report


if __name__ == "__main__":
  cli.run(evaluate)
