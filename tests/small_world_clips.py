"""Writes real clips of the small world as files, for comparison.

  python -m tests.small_world_clips FOLDER

What a perfect model would make of the prompts that training never showed: two
clips of a minute each, in the form in which `evaluate` writes those of models.
"""

import pathlib
import sys

import numpy as np

from videomla_jax.generation import mp4
from videomla_jax.generation import pixels
from videomla_jax.quality import plan
from videomla_jax.quality import prompt_lists
from videomla_jax.small_world import measures
from videomla_jax.small_world import prompts

_FPS, _SCALE, _FRAMES = 4, 12, 240  # those of the shipped models


def write(folder: pathlib.Path) -> None:
  """Writes the clips under the names of VBench."""
  folder.mkdir(parents=True, exist_ok=True)
  held_out = [*prompts.held_out_prompts()]
  videos = plan.videos_of(
    prompt_lists.of_texts([x.text() for x in held_out]),
    samples=2,
    still_samples=2,
    seed=0,
  )
  shown = [prompts.parse(x.prompt) for x in videos]
  real = measures.real_videos(shown, num_frames=_FRAMES, seed=0)
  for video, frames in zip(videos, real, strict=True):
    mp4.write_mp4(
      folder / video.file,
      np.asarray(pixels.to_uint8(frames)),
      fps=_FPS,
      scale=_SCALE,
    )


if __name__ == "__main__":
  write(pathlib.Path(sys.argv[1]))
