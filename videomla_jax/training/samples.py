"""Videos that a run shows on its way: an MP4 grid and a contact sheet."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

from videomla_jax.data import reader
from videomla_jax.diffusion import sampling
from videomla_jax.generation import mp4
from videomla_jax.generation import pipeline
from videomla_jax.generation import sources
from videomla_jax.models import released
from videomla_jax.models import wan
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import prompts as prompts_lib
from videomla_jax.training import inputs
from videomla_jax.training import settings as settings_lib


class _Given(NamedTuple):
  """What videos are made from: networks, captions and their embeddings."""

  parts: pipeline.Parts
  words: list[str]
  text: Array


def _small(
  model: model_lib.VideoModel, settings: settings_lib.Training, guided: bool
) -> _Given:
  """Prompts that the small world's training never shows."""
  words = [p.text() for p in prompts_lib.held_out_prompts()]
  words = words[: settings.samples.videos]
  source = sources.SmallSource(model=model)
  text = source.embed(words, negative="" if guided else None)
  return _Given(source.load(), words, text)


def _prepared(
  model: wan.WanDiT, settings: settings_lib.Training, guided: bool
) -> _Given:
  """The first held-out captions of prepared data; the VAE is loaded for it."""
  data, samples = settings.data, settings.samples
  assert isinstance(data, settings_lib.PreparedClips)
  wanted = reader.Shapes(latents=None, text=data.text_shape)
  words, text, negative = reader.read_captions(
    data.root, wanted, samples.videos
  )
  if guided:
    text = np.concatenate([text, np.broadcast_to(negative, text.shape)])
  parts = pipeline.Parts(
    dit=model,
    codec=released.load(samples.codec, "wan_vae"),
    frame=data.latent_shape,
    fps=samples.fps,
  )
  return _Given(parts, words, jnp.asarray(text))


def check(settings: settings_lib.Training) -> None:
  """Refuses samples that could not be shown.

  Raises:
    ValueError: If prepared data lack a codec to look at them.
  """
  samples = settings.samples
  prepared = isinstance(settings.data, settings_lib.PreparedClips)
  if not prepared or samples.videos < 1:
    return
  if not samples.codec or not pathlib.Path(samples.codec).is_dir():
    raise ValueError(
      f"samples.codec={samples.codec!r} must be the folder of the VAE that"
      " decodes samples, such as models/wan_1p3b/vae; or set samples.videos=0."
    )


def write(
  folder: pathlib.Path,
  model: inputs.Network,
  step: int,
  settings: settings_lib.Training,
  *,
  sampler: sampling.Sampler,
  causal: bool,
) -> list[pathlib.Path]:
  """Generates videos of held-out prompts and writes them.

  Args:
    folder: Where to write.
    model: The average of a small video model, or of a bare DiT.
    step: Finished steps, for the names.
    settings: Settings of the stage.
    sampler: The sampler that the model is made for.
    causal: Whether videos are made chunk by chunk, or as a whole clip.

  Returns:
    The files.
  """
  guided = sampler.guidance is not None
  if isinstance(model, model_lib.VideoModel):
    parts, words, text = _small(model, settings, guided)
  else:
    parts, words, text = _prepared(model, settings, guided)
  key = jax.random.key(settings.seed)
  if causal:
    pieces = pipeline.roll_out(
      parts,
      text,
      key,
      window=settings.window,
      sampler=sampler,
      num_frames=round(settings.samples.seconds * parts.fps),
    )
  else:
    stride = parts.codec.temporal_stride
    pieces = pipeline.whole_clip(
      parts,
      text,
      key,
      sampler=sampler,
      num_frames=(settings.data.num_frames - 1) * stride + 1,
    )
  pixels = np.concatenate([np.asarray(x) for x in pieces], axis=1)
  frames = mp4.to_uint8(pixels)
  folder.mkdir(parents=True, exist_ok=True)
  sheet = folder / f"step-{step:07d}.png"
  mp4.write_png(sheet, mp4.contact_sheet(frames, words, fps=parts.fps))
  film = folder / f"step-{step:07d}.mp4"
  scale = 8 if isinstance(model, model_lib.VideoModel) else 1
  mp4.write_mp4(film, _grid(frames), fps=parts.fps, scale=scale)
  return [sheet, film]


def _grid(frames: np.ndarray) -> np.ndarray:
  """All videos side by side in one."""
  return np.concatenate([*frames], axis=2)
