"""Text to video: one MP4 per prompt, a contact sheet and a JSON report.

  python -m videomla_jax.sample --config=configs/sample.py:latent \
    --config.prompts="a slow three moving horizontally"

Sizes are printed before anything compiles. Video streams out chunk by chunk
through a cache of fixed size, so any length needs the same memory.
"""

import contextlib
import json
import pathlib
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8
import numpy as np
from PIL import Image

from videomla_jax import cli
from videomla_jax import metrics
from videomla_jax import shapes
from videomla_jax import video
from videomla_jax.analysis import memory
from videomla_jax.data import prompts as prompts_lib
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import stream
from videomla_jax.models import cache
from videomla_jax.models import video_model


def make_sampler(config: Any, *, shift: float) -> rollout.Sampler:
  """Reads `config.sampler`; the schedule is warped as in training.

  Raises:
    ValueError: If the kind is unknown.
  """
  if config.kind == "few_step":
    return rollout.few_step(shift=shift)
  if config.kind != "euler":
    raise ValueError(
      f"sampler.kind={config.kind!r} is unknown; use 'euler' or 'few_step'."
    )
  guidance = float(config.guidance) or None
  return rollout.euler(config.num_steps, shift=shift, guidance=guidance)


def split_prompts(text: str) -> list[str]:
  """Prompts of one string, separated by semicolons; empty ones are errors."""
  prompts = [part.strip() for part in text.rstrip("; ").split(";")]
  for prompt in prompts:
    prompts_lib.tokenize(prompt)
  return prompts


def embed(
  model: video_model.VideoModel, prompts: list[str], sampler: rollout.Sampler
) -> Array:
  """Text embeddings, followed by the unconditional ones under guidance."""
  tokens = jnp.asarray(prompts_lib.tokenize_batch(prompts))
  if sampler.guidance is not None:
    tokens = jnp.concatenate([tokens, jnp.zeros_like(tokens)])
  return model.encode_text(tokens)


def read_context(
  config: Any, model: video_model.VideoModel
) -> UInt8[np.ndarray, "T h w c"] | None:
  """Given first frames from `config.image` or `config.clip`, resized.

  Raises:
    ValueError: If both are given or the file cannot be read.
  """
  if config.image and config.clip:
    raise ValueError("image and clip are both given; choose one.")
  if config.image:
    try:
      with Image.open(config.image) as picture:
        frames = [picture.convert("RGB")]  # decodes, so damage shows here
    except (OSError, SyntaxError) as error:
      raise ValueError(
        f"image={config.image!r} cannot be read; give a PNG or JPEG file."
      ) from error
  elif config.clip:
    frames = [Image.fromarray(f) for f in video.read_mp4(config.clip)[0]]
  else:
    return None
  codec, shape = model.codec, model.latent_shape()
  size = (shape[1] * codec.block, shape[0] * codec.block)
  mode = "L" if codec.pixel_channels == 1 else "RGB"
  resized = [
    np.asarray(f.convert(mode).resize(size, Image.Resampling.BOX))
    for f in frames
  ]
  return np.stack(resized).reshape(
    len(frames), size[1], size[0], codec.pixel_channels
  )


def output_paths(config: Any, prompts: list[str]) -> list[pathlib.Path]:
  """One MP4 name per prompt, readable and unique."""
  folder = pathlib.Path(config.folder)
  slugs = [re.sub(r"[^a-z0-9]+", "-", p.lower()).strip("-") for p in prompts]
  return [
    folder / f"{config.name}-{i}-{slug[:60]}.mp4"
    for i, slug in enumerate(slugs)
  ]


class _Films:
  """Writes every video as it arrives and keeps the frames of the sheet."""

  def __init__(self, paths, *, fps, scale, num_frames, columns=22):
    self._stack = contextlib.ExitStack()
    self._writers = [
      self._stack.enter_context(video.Mp4Writer(p, fps=fps, scale=scale))
      for p in paths
    ]
    self._wanted = set(video.sheet_frames(num_frames, columns=columns))
    self._left, self._index = num_frames, 0
    self.kept = []

  def __enter__(self):
    self._stack.__enter__()
    return self

  def __exit__(self, *error):
    return self._stack.__exit__(*error)

  def append(self, frames: UInt8[np.ndarray, "B T h w c"]) -> int:
    """Writes frames up to the video's length; returns how many."""
    frames = frames[:, : self._left]
    for writer, film in zip(self._writers, frames, strict=True):
      writer.append(film)
    for i in range(frames.shape[1]):
      if self._index + i in self._wanted:
        self.kept.append((self._index + i, frames[:, i]))
    self._left -= frames.shape[1]
    self._index += frames.shape[1]
    return frames.shape[1]


def sample(config: Any) -> dict[str, Any]:
  """Runs one config; everything is checked before the first compilation.

  Args:
    config: See configs/sample.py.

  Returns:
    The JSON report.

  Raises:
    ValueError: If the prompts, the checkpoint, the window or the output folder
      cannot work.
  """
  prompts = split_prompts(config.prompts)
  window = cache.Window(**config.window)
  model = video_model.load(config.checkpoint)
  fps = model.config.fps
  num_frames = round(config.seconds * fps)
  if num_frames < 1:
    raise ValueError(
      f"seconds={config.seconds} is less than one frame at {fps:g} frames per "
      "second; ask for more."
    )
  sampler = make_sampler(config.sampler, shift=model.config.shift)
  context = read_context(config, model)
  if config.output.scale < 1:
    raise ValueError(
      f"output.scale={config.output.scale} must be at least 1; use 12."
    )
  video.check_output_folder(config.output.folder)
  text = embed(model, prompts, sampler)
  given = 0 if context is None else min(len(context), num_frames)
  sizes = memory.needs(
    model.dit,
    streams=text.shape[0],
    frame=model.latent_shape(),
    window=window,
    max_frames=given + shapes.round_up(num_frames - given, window.chunk_frames),
  )
  for line in sizes.lines():
    print(line, flush=True)
  started = time.monotonic()
  films, compile_seconds = _run(
    config, model, prompts, text, window, sampler, num_frames, context
  )
  seconds = time.monotonic() - started
  report = dict(
    prompts=prompts,
    frames=num_frames,
    fps=fps,
    seconds_wall=round(seconds, 3),
    seconds_to_first_chunk=round(compile_seconds, 3),
    frames_per_second=round(len(prompts) * num_frames / seconds, 2),
    cache_scalars_per_token_layer=sizes.scalars_per_token_layer,
    dense_scalars_per_token_layer=sizes.dense_scalars_per_token_layer,
    cache_bytes=sizes.cache_bytes,
    dense_cache_bytes=sizes.dense_cache_bytes,
    parameters=sizes.parameters,
    predicted_peak_bytes=sizes.peak_bytes,
    checkpoint=config.checkpoint,
    sampler=config.sampler.to_dict(),
    window=config.window.to_dict(),
    seed=config.seed,
    videos=[p.name for p in output_paths(config.output, prompts)],
  )
  _write_results(config.output, prompts, films, fps, report)
  return report


def _run(config, model, prompts, text, window, sampler, num_frames, context):
  """Streams all videos to disk; returns the films and the first latency."""
  given, count = None, 0
  paths = output_paths(config.output, prompts)
  films = _Films(
    paths,
    fps=model.config.fps,
    scale=config.output.scale,
    num_frames=num_frames,
  )
  decode = jax.jit(model.codec.decode)
  started, first = time.monotonic(), 0.0
  with films, metrics.Progress(num_frames, "sample", unit="frame") as progress:
    if context is not None:
      repeated = np.repeat(context[None], len(prompts), axis=0)
      count = films.append(repeated)
      progress.update(count)
      given = model.codec.encode(jnp.asarray(repeated[:, :count]))
    chunks = stream.Stream(
      model.dit,
      text,
      jax.random.key(config.seed),
      frame=model.latent_shape(),
      window=window,
      sampler=sampler,
      max_frames=num_frames - count,
      context=given,
    )
    for latents in chunks:
      pixels = video.to_uint8(np.asarray(decode(latents)))
      first = first or time.monotonic() - started
      progress.update(films.append(pixels))
  return films, first


def _write_results(config, prompts, films, fps, report):
  """The contact sheet and the report, each complete or not at all."""
  folder = pathlib.Path(config.folder)
  indices = [i for i, _ in films.kept]
  kept = np.stack([frame for _, frame in films.kept], axis=1)
  sheet = video.contact_sheet(
    kept, prompts, fps=fps, frame_indices=indices, scale=2
  )
  video.write_png(folder / f"{config.name}-sheet.png", sheet)
  path = folder / f"{config.name}.json"
  temporary = path.with_suffix(".json.tmp")
  temporary.write_text(json.dumps(report, indent=2) + "\n")
  temporary.replace(path)
  print(
    f"{len(prompts)} videos of {report['frames']} frames in "
    f"{report['seconds_wall']:.1f} s: {folder}/{config.name}-*",
    flush=True,
  )


if __name__ == "__main__":
  cli.run(sample)
