"""Videos that a run makes on its way: an MP4 grid and a contact sheet.

They show prompts that training never sees, with the averaged model and the
sampler that it is made for.
"""

from collections.abc import Iterable
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8
import numpy as np

from videomla_jax.data import example_shape
from videomla_jax.data import reader
from videomla_jax.diffusion import sampling
from videomla_jax.generation import contact_sheet
from videomla_jax.generation import mp4
from videomla_jax.generation import pipeline as pipeline_lib
from videomla_jax.generation import pixel_stream
from videomla_jax.generation import sources
from videomla_jax.models import released
from videomla_jax.models import wan
from videomla_jax.small_world import model as model_lib
from videomla_jax.training import inputs
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage as stage_lib


class _Inputs(NamedTuple):
  """What videos are made from: networks, captions and their embeddings."""

  pipeline: pipeline_lib.Pipeline
  words: list[str]
  text: Array


def _small(
  model: model_lib.VideoModel, settings: settings_lib.Training, guided: bool
) -> _Inputs:
  """Returns a small model with prompts that its training never shows.

  Args:
    model: The averaged model.
    settings: Settings of the stage.
    guided: Whether the sampler reads embeddings of the negative prompt.
  """
  words = [*model.config.of_world.held_out()[: settings.samples.videos]]
  source = sources.SmallSource(model=model)
  text = source.embed(words, negative="" if guided else None)
  return _Inputs(source.load(), words, text)


def _prepared(
  model: wan.WanDiT, settings: settings_lib.Training, guided: bool
) -> _Inputs:
  """Returns a bare DiT, the VAE, and the first held-out captions.

  Args:
    model: The averaged model.
    settings: Settings of the stage.
    guided: Whether the sampler reads embeddings of the negative prompt.
  """
  data, samples = settings.data, settings.samples
  assert isinstance(data, settings_lib.PreparedClips)
  wanted = example_shape.ExampleShape(latents=None, text=data.text_shape)
  words, text, negative = reader.read_captions(
    data.root, wanted, samples.videos
  )
  if guided:
    # Samplers want the unconditional rows behind the conditional ones.
    text = np.concatenate([text, np.broadcast_to(negative, text.shape)])
  pipeline = pipeline_lib.Pipeline(
    dit=model,
    # It is loaded every time, since it would take memory from the steps
    # between.
    codec=released.load(samples.codec, "wan_vae"),
    frame=data.latent_shape,
    fps=samples.fps,
  )
  return _Inputs(pipeline, words, jnp.asarray(text))


def check(stage: stage_lib.Stage, settings: settings_lib.Training) -> None:
  """Refuses samples that could not be made or shown.

  Args:
    stage: The stage.
    settings: Settings of the stage.

  Raises:
    ValueError: If no sampler has these steps, or samples of prepared data lack
      a codec that decodes them or a frame rate.
  """
  samples = settings.samples
  if samples.videos < 1:
    return
  stage.sampler(settings)  # This refuses steps that cannot be taken.
  if not isinstance(settings.data, settings_lib.PreparedClips):
    return
  if samples.fps <= 0:
    raise ValueError(
      f"samples.fps={samples.fps} must be the frame rate of the clips; Wan's is"
      " 16."
    )
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
    folder: Folder of the files, created if missing.
    model: The average of a small video model, or of a bare DiT.
    step: Number of finished steps, which names the files.
    settings: Settings of the stage.
    sampler: The sampler that the model is made for.
    causal: Whether videos are made chunk by chunk, or as a whole clip.

  Returns:
    The paths of the contact sheet and of the MP4 file.
  """
  guided = sampler.guidance is not None
  if isinstance(model, model_lib.VideoModel):
    pipeline, words, text = _small(model, settings, guided)
  else:
    pipeline, words, text = _prepared(model, settings, guided)
  frames = _generate(pipeline, text, settings, sampler=sampler, causal=causal)
  folder.mkdir(parents=True, exist_ok=True)
  sheet = folder / f"step-{step:07d}.png"
  contact_sheet.write_png(
    sheet, contact_sheet.draw(frames, words, fps=pipeline.fps)
  )
  video_file = folder / f"step-{step:07d}.mp4"
  # Frames of small worlds have 24 or 64 pixels a side.
  scale = 1
  if isinstance(model, model_lib.VideoModel):
    scale = model.config.of_world.scale
  side_by_side = np.concatenate([*frames], axis=2)  # b t h w c -> t h (b w) c
  mp4.write_mp4(video_file, side_by_side, fps=pipeline.fps, scale=scale)
  return [sheet, video_file]


def _generate(
  pipeline: pipeline_lib.Pipeline,
  text: Array,
  settings: settings_lib.Training,
  *,
  sampler: sampling.Sampler,
  causal: bool,
) -> UInt8[np.ndarray, "b t h w c"]:
  """Generates one video for each prompt.

  Args:
    pipeline: Network and codec.
    text: Embeddings of the prompts, with guidance the unconditional rows last.
    settings: Settings of the stage.
    sampler: The sampler that the model is made for.
    causal: Whether videos are made chunk by chunk, or as a whole clip.
  """
  # The noise is the same every time: what changes from file to file is the
  # model.
  key = jax.random.key(settings.seed)
  chunks: Iterable[pixel_stream.Frames]
  if causal:
    seconds = settings.samples.seconds
    assert seconds is not None  # `unused.check` asks for it
    chunks = pixel_stream.PixelStream(
      pipeline,
      text,
      key,
      window=settings.window,
      sampler=sampler,
      num_frames=round(seconds * pipeline.fps),
    )
  else:
    stride = pipeline.codec.temporal_stride
    chunks = pixel_stream.whole_clip(
      pipeline,
      text,
      key,
      sampler=sampler,
      num_frames=(settings.data.num_frames - 1) * stride + 1,
    )
  return np.concatenate([*chunks], axis=1)
