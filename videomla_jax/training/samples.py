"""Videos that a run shows on its way: an MP4 grid and a contact sheet."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

from videomla_jax.data import reader
from videomla_jax.diffusion import sampling
from videomla_jax.generation import contact_sheet
from videomla_jax.generation import mp4
from videomla_jax.generation import pipeline
from videomla_jax.generation import pixels as pixels_lib
from videomla_jax.generation import sources
from videomla_jax.models import released
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import prompts as prompts_lib


def sampler_of(config: Any) -> sampling.Sampler:
  """The sampler that a stage's model is made for."""
  shift = config.diffusion.shift
  if config.stage in ("consistency", "dmd"):
    return sampling.few_step(tuple(config.diffusion.timesteps), shift=shift)
  samples = config.samples
  return sampling.euler(
    samples.num_steps, shift=shift, guidance=samples.guidance
  )


class _Given(NamedTuple):
  """What videos are made from: networks, captions and their embeddings."""

  parts: pipeline.Pipeline
  words: list[str]
  text: Array


def _small(model: model_lib.VideoModel, config: Any, guided: bool) -> _Given:
  """Prompts that the small world's training never shows."""
  words = [p.text() for p in prompts_lib.held_out_prompts()]
  words = words[: config.samples.videos]
  source = sources.SmallSource(model=model)
  text = source.embed(words, negative="" if guided else None)
  return _Given(source.load(), words, text)


def _prepared(model: wan.WanDiT, config: Any, guided: bool) -> _Given:
  """The first held-out captions of prepared data; the VAE is loaded for it."""
  wanted = reader.Shapes(latents=None, text=(*config.data.text_shape,))
  words, text, negative = reader.read_captions(
    config.data.root, wanted, config.samples.videos
  )
  if guided:
    text = np.concatenate([text, np.broadcast_to(negative, text.shape)])
  parts = pipeline.Pipeline(
    dit=model,
    codec=released.load(config.samples.codec, "wan_vae"),
    frame=tuple(config.data.latent_shape),
    fps=config.samples.fps,
  )
  return _Given(parts, words, jnp.asarray(text))


def check(config: Any) -> None:
  """Refuses samples that could not be shown.

  Raises:
    ValueError: If prepared data lack a codec to look at them.
  """
  samples = config.samples
  if config.data.kind != "latents" or samples.videos < 1:
    return
  if not samples.codec or not pathlib.Path(samples.codec).is_dir():
    raise ValueError(
      f"samples.codec={samples.codec!r} must be the folder of the VAE that"
      " decodes samples, such as models/wan_1p3b/vae; or set samples.videos=0."
    )


def write(
  folder: pathlib.Path, model: Any, step: int, config: Any
) -> list[pathlib.Path]:
  """Generates videos of held-out prompts and writes them.

  Args:
    folder: Where to write.
    model: The average of a small video model, or of a bare DiT.
    step: Finished steps, for the names.
    config: Training config.

  Returns:
    The files.
  """
  sampler = sampler_of(config)
  small = isinstance(model, model_lib.VideoModel)
  make = _small if small else _prepared
  parts, words, text = make(model, config, sampler.guidance is not None)
  key = jax.random.key(config.seed)
  stride = parts.codec.temporal_stride
  if config.stage == "pretraining":
    pieces = pipeline.whole_clip(
      parts,
      text,
      key,
      sampler=sampler,
      num_frames=(config.data.num_frames - 1) * stride + 1,
    )
  else:
    pieces = pipeline.PixelStream(
      parts,
      text,
      key,
      window=window_lib.Window(**config.window),
      sampler=sampler,
      num_frames=round(config.samples.seconds * parts.fps),
    )
  pixels = np.concatenate([np.asarray(x) for x in pieces], axis=1)
  frames = pixels_lib.to_uint8(pixels)
  folder.mkdir(parents=True, exist_ok=True)
  sheet = folder / f"step-{step:07d}.png"
  contact_sheet.write_png(
    sheet, contact_sheet.draw(frames, words, fps=parts.fps)
  )
  film = folder / f"step-{step:07d}.mp4"
  scale = 8 if small else 1
  mp4.write_mp4(film, _grid(frames), fps=parts.fps, scale=scale)
  return [sheet, film]


def _grid(frames: np.ndarray) -> np.ndarray:
  """All videos side by side in one."""
  return np.concatenate([*frames], axis=2)
