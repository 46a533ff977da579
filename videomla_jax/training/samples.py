"""Videos that a run shows on its way: an MP4 grid and a contact sheet."""

import pathlib
from typing import Any

import jax
import numpy as np

from videomla_jax import sources
from videomla_jax import text_to_video
from videomla_jax import video
from videomla_jax.data import prompts as prompts_lib
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache
from videomla_jax.models import video_model


def sampler_of(config: Any) -> sampling.Sampler:
  """The sampler that a stage's model is made for."""
  shift = config.diffusion.shift
  if config.stage in ("consistency", "dmd"):
    return sampling.few_step(tuple(config.diffusion.timesteps), shift=shift)
  samples = config.samples
  return sampling.euler(
    samples.num_steps, shift=shift, guidance=samples.guidance
  )


def write(
  folder: pathlib.Path, model: video_model.VideoModel, step: int, config: Any
) -> list[pathlib.Path]:
  """Generates videos of held-out prompts and writes them.

  Args:
    folder: Where to write.
    model: The average of a small video model.
    step: Finished steps, for the names.
    config: Training config.

  Returns:
    The files.
  """
  prompts = [*prompts_lib.held_out_prompts()][: config.samples.videos]
  words = [p.text() for p in prompts]
  source = sources.SmallSource(model=model)
  sampler = sampler_of(config)
  num_frames = round(config.samples.seconds * source.fps)
  text = source.embed(words, negative="" if sampler.guidance else None)
  given = (source.load(), text, jax.random.key(config.seed))
  if config.stage == "pretraining":
    pieces = text_to_video.whole_clip(
      *given, sampler=sampler, num_frames=config.data.num_frames
    )
  else:
    pieces = text_to_video.roll_out(
      *given,
      window=cache.Window(**config.window),
      sampler=sampler,
      num_frames=num_frames,
    )
  pixels = np.concatenate([np.asarray(x) for x in pieces], axis=1)
  frames = video.to_uint8(pixels)
  folder.mkdir(parents=True, exist_ok=True)
  sheet = folder / f"step-{step:07d}.png"
  video.write_png(sheet, video.contact_sheet(frames, words, fps=source.fps))
  film = folder / f"step-{step:07d}.mp4"
  video.write_mp4(film, _grid(frames), fps=source.fps, scale=8)
  return [sheet, film]


def _grid(frames: np.ndarray) -> np.ndarray:
  """All videos side by side in one."""
  return np.concatenate([*frames], axis=2)
