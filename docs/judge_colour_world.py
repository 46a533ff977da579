r"""Measures real clips of the colour world, and clips that were damaged.

  python docs/judge_colour_world.py [--judge=runs/colour_judge.npz] \
    [--seed=0] [--clips=24] [--seconds=20] [--psnr=34,31,28]

prints the row of real clips, which belongs beside every model's, and the rows
of the same clips with blur and noise as an autoencoder would have at some
PSNR; and what the judge gets wrong against the truth. Clips are of held-out
handwriting in held-out colours. The table of docs/colour_world.md is that of

  python docs/judge_colour_world.py --seed=0 --clips=24 --seconds=20
"""

import argparse
import functools

import jax
from jaxtyping import Num
import numpy as np

from videomla_jax.small_world.colour import damage
from videomla_jax.small_world.colour import floor
from videomla_jax.small_world.colour import judge as judge_lib
from videomla_jax.small_world.colour import measures
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import summaries
from videomla_jax.small_world.colour import words
from videomla_jax.small_world.colour import world


def main() -> None:
  """Reads the arguments and prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--judge", default="runs/colour_judge.npz")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--clips", type=int, default=24)
  parser.add_argument("--seconds", type=float, default=20.0)
  parser.add_argument("--psnr", default="34,31,28")
  arguments = parser.parse_args()
  reader, report = judge_lib.load_or_train(arguments.judge)
  print(report.text(), flush=True)
  num_frames = round(arguments.seconds * motion.FPS)
  sample = functools.partial(
    world.sample, size=arguments.clips, num_frames=num_frames, split="test"
  )
  clips = jax.device_get(jax.jit(sample)(jax.random.key(arguments.seed)))
  prompts = [words.prompt_of(row) for row in clips.choices]
  rows, floors = {}, {}
  levels: list[float | None] = [None]
  levels += [float(x) for x in arguments.psnr.split(",") if x]
  for psnr in levels:
    videos: Num[np.ndarray, "V T 64 64 3"] = clips.video
    if psnr is not None:
      rng = np.random.default_rng(arguments.seed)
      videos = damage.damage(rng, videos, psnr=psnr)
    name = "real" if psnr is None else f"{psnr:g} dB"
    judged = measures.examine(videos, prompts, reader)
    rows[name] = measures.measure_judged(judged, prompts)
    floors[name] = floor.errors(judged, clips.truth)
    print(f"measured {name}", flush=True)
  print(floor.table(floors))
  summary = {name: summaries.summarise(row) for name, row in rows.items()}
  print(summaries.table(summary, windows=("all",)))
  print(summaries.memory_table(rows))


if __name__ == "__main__":
  main()
