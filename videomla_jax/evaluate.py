"""Measures models against known truth: identity, count, motion, drift.

  python -m videomla_jax.evaluate --config=configs/evaluate.py

Writes a Markdown table, a JSON file with every video's measures and a contact
sheet per model. Prompts are those that training never showed; the row of real
clips says what a perfect model would get from the same judge.
"""

import dataclasses
import json
import time
from typing import Any

import jax
from jaxtyping import Float
import numpy as np

from videomla_jax import cli
from videomla_jax import metrics
from videomla_jax import sample
from videomla_jax import sources
from videomla_jax import text_to_video
from videomla_jax import video
from videomla_jax import whole_file
from videomla_jax.analysis import judge as judge_lib
from videomla_jax.analysis import long_rollout
from videomla_jax.data import prompts as prompts_lib
from videomla_jax.models import video_model


def generate_videos(
  source: sources.SmallSource,
  prompts: list[prompts_lib.Prompt],
  config: Any,
  *,
  name: str,
) -> Float[np.ndarray, "V T h w 1"]:
  """Generates one video per prompt, in [0, 1], with a progress bar."""
  num_frames = sample.count_frames(config.seconds, source.fps)
  sampler = sample.make_sampler(config.sampler, shift=source.shift)
  negative = None if sampler.guidance is None else ""
  pieces = []
  with metrics.Progress(num_frames, name, unit="frame") as progress:
    for pixels in text_to_video.roll_out(
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


def evaluate(config: Any) -> dict[str, Any]:
  """Runs every row of the table.

  Args:
    config: See configs/evaluate.py.

  Returns:
    The JSON report.

  Raises:
    ValueError: If a checkpoint, a length or the output folder cannot work.
  """
  models = {
    n: sources.SmallSource(model=video_model.load(p))
    for n, p in config.checkpoints.items()
  }
  if config.videos_per_prompt < 1 or config.seconds <= 0:
    raise ValueError(
      f"videos_per_prompt={config.videos_per_prompt} and "
      f"seconds={config.seconds} must be positive."
    )
  folder = video.check_output_folder(config.output.folder)
  judge, judge_report = judge_lib.load_or_train_judge(config.judge)
  prompts = [*prompts_lib.held_out_prompts()] * config.videos_per_prompt
  fps = next(iter(models.values())).fps
  num_frames = round(config.seconds * fps)
  real = long_rollout.real_videos(
    prompts, num_frames=num_frames, seed=config.seed
  )
  measures = {"real": long_rollout.measure(real, prompts, judge, fps)}
  seconds = {}
  for name, source in models.items():
    started = time.monotonic()
    videos = generate_videos(source, prompts, config, name=name)
    seconds[name] = round(time.monotonic() - started, 1)
    measures[name] = long_rollout.measure(videos, prompts, judge, fps)
    sheet = video.contact_sheet(
      video.to_uint8(videos[:10]), [p.text() for p in prompts[:10]], fps=fps
    )
    video.write_png(folder / f"{config.output.name}-{name}.png", sheet)
  rows = {n: long_rollout.summarise(m) for n, m in measures.items()}
  table = long_rollout.table(rows)
  report = dict(
    videos=len(prompts),
    frames=num_frames,
    sampler=config.sampler.to_dict(),
    seed=config.seed,
    judge=dataclasses.asdict(judge_report),
    generation_seconds=seconds,
    summary=rows,
    per_video={
      n: {k: np.asarray(v).tolist() for k, v in m.items()}
      for n, m in measures.items()
    },
  )
  whole_file.write_text(folder / f"{config.output.name}.md", table + "\n")
  text = json.dumps(report, indent=1, default=float) + "\n"
  whole_file.write_text(folder / f"{config.output.name}.json", text)
  print(table, flush=True)
  return report


if __name__ == "__main__":
  cli.run(evaluate)
