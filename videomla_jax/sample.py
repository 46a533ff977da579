"""Text to video: one MP4 per prompt, a contact sheet and a JSON report.

  python -m videomla_jax.sample --config=configs/sample.py:latent \
    --config.prompts="a slow three moving horizontally"

Small models and Wan, causal and bidirectional, go the same way. Sizes are
printed before anything compiles. A causal model streams through a cache of
fixed size, so any length needs the same memory.
"""

from collections.abc import Iterator
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from videomla_jax import shapes
from videomla_jax.costs import memory
from videomla_jax.diffusion import sampling
from videomla_jax.generation import given_frames
from videomla_jax.generation import mp4
from videomla_jax.generation import pipeline
from videomla_jax.generation import sources
from videomla_jax.models import window as window_lib
from videomla_jax.ops import quantise
from videomla_jax.runtime import cli
from videomla_jax.runtime import metrics
from videomla_jax.storage import atomic


def make_sampler(config: Any, source: sources.Source) -> sampling.Sampler:
  """Reads `config.sampler`.

  Args:
    config: Kind ("auto" is the model's own), steps, guidance, and a shift or 0
      for the model's own.
    source: The model.

  Raises:
    ValueError: If the kind is unknown.
  """
  shift = config.shift or source.shift
  kind = config.kind
  if kind == "auto":
    kind = "few_step" if source.distilled else "euler"
  if kind == "few_step":
    return sampling.few_step(shift=shift)
  rules = {"euler": sampling.euler, "unipc": sampling.unipc}
  if kind not in rules:
    raise ValueError(
      f"sampler.kind={config.kind!r} is unknown; use one of "
      f"{['auto', *sorted(rules), 'few_step']}."
    )
  guidance = float(config.guidance) or None
  return rules[kind](config.num_steps, shift=shift, guidance=guidance)


def split_prompts(text: str) -> list[str]:
  """Prompts of one string, separated by semicolons."""
  return [part.strip() for part in text.rstrip("; ").split(";")]


def check(config: Any) -> None:
  """Raises `ValueError` for values that cannot work with any model."""
  if config.output.scale < 1:
    raise ValueError(
      f"output.scale={config.output.scale} must be at least 1; use 12."
    )
  dtypes = ("", "float32", "bfloat16", *quantise.LARGEST)
  if config.cache_dtype not in dtypes:
    raise ValueError(
      f"cache_dtype={config.cache_dtype!r} is unknown; use one of {dtypes}, "
      "where '' is the model's own."
    )
  modes = ("causal", "bidirectional")
  if config.mode not in modes:
    raise ValueError(f"mode={config.mode!r} is unknown; use one of {modes}.")
  if config.mode == "bidirectional" and (config.image or config.clip):
    raise ValueError(
      "image and clip need mode='causal': a bidirectional text-to-video model "
      "takes no first frames."
    )


def count_frames(seconds: float | int, fps: float | int) -> int:
  """Pixel frames of a video; raises `ValueError` below one."""
  count = round(seconds * fps)
  if count < 1:
    raise ValueError(
      f"seconds={seconds} is less than one frame at {fps:g} frames per "
      "second; ask for more."
    )
  return count


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
  check(config)
  prompts = split_prompts(config.prompts)
  source = sources.open_source(config)
  source.check(prompts)
  window = window_lib.Window(**config.window)
  sampler = make_sampler(config.sampler, source)
  num_frames = count_frames(config.seconds, source.fps)
  height, width = source.pixels
  given = given_frames.read_given(
    config, height=height, width=width, channels=source.pixel_channels
  )
  mp4.check_output_folder(config.output.folder)
  negative = None if sampler.guidance is None else config.negative_prompt
  text = source.embed(prompts, negative=negative)
  parts = source.load()
  if given is not None:
    given = pipeline.usable_clip(given, parts, num_frames=num_frames)
  if config.mode == "bidirectional":
    window = _whole(parts.latents_for(num_frames))
  sizes = _print_sizes(config, parts, text, prompts, window, num_frames, given)
  started = time.monotonic()
  made, first = _run(
    config, parts, prompts, text, window, sampler, num_frames, given
  )
  seconds = time.monotonic() - started
  report = dict(
    prompts=prompts,
    mode=config.mode,
    frames=num_frames,
    height=height,
    width=width,
    fps=parts.fps,
    seconds_wall=round(seconds, 3),
    seconds_to_first_chunk=round(first, 3),
    frames_per_second=round(len(prompts) * num_frames / seconds, 2),
    **_size_report(sizes),
    checkpoint=config.checkpoint,
    sampler=config.sampler.to_dict(),
    window=config.window.to_dict(),
    seed=config.seed,
    videos=[p.name for p in given_frames.paths(config.output, prompts)],
  )
  _write_results(config.output, prompts, made, report)
  return report


def _whole(frames: int) -> window_lib.Window:
  """The window of a clip made at once: every frame sees every frame."""
  return window_lib.Window(
    chunk_frames=frames, sink_frames=0, local_frames=frames
  )


def _print_sizes(
  config, parts, text, prompts, window, num_frames, given
) -> memory.Needs:
  """Says what the run needs before anything compiles."""
  known = 0 if given is None else parts.latents_for(len(given))
  new = parts.latents_for(num_frames) - known
  sizes = memory.needs(
    parts.dit,
    streams=text.shape[0],
    frame=parts.frame,
    window=window,
    max_frames=known + shapes.round_up(new, window.chunk_frames),
    cache_dtype=config.cache_dtype or None,
    codec=parts.codec,
    videos=len(prompts),
  )
  for line in sizes.lines():
    print(line, flush=True)
  return sizes


def _size_report(sizes: memory.Needs) -> dict[str, int]:
  return dict(
    cache_scalars_per_token_layer=sizes.scalars_per_token_layer,
    dense_scalars_per_token_layer=sizes.dense_scalars_per_token_layer,
    cache_bytes=sizes.cache_bytes,
    dense_cache_bytes=sizes.dense_cache_bytes,
    decoder_bytes=sizes.decoder_bytes,
    parameters=sizes.parameters,
    predicted_peak_bytes=sizes.peak_bytes,
  )


def _run(config, parts, prompts, text, window, sampler, num_frames, given):
  """Streams all videos to disk; returns the films and the first latency."""
  made = given_frames.Films(
    given_frames.paths(config.output, prompts),
    fps=parts.fps,
    scale=config.output.scale,
    num_frames=num_frames,
  )
  common = dict(sampler=sampler, num_frames=num_frames)
  key = jax.random.key(config.seed)
  started, first = time.monotonic(), 0.0
  if config.mode == "bidirectional":
    pieces = _whole_clip(parts, text, key, **common)
  else:
    pieces = pipeline.roll_out(
      parts,
      text,
      key,
      window=window,
      given=given,
      cache_dtype=config.cache_dtype or None,
      **common,
    )
  with made, metrics.Progress(num_frames, "sample", unit="frame") as progress:
    if given is not None:
      copies = np.repeat(given[None], len(prompts), axis=0)
      progress.update(made.append(copies))
    for pixels in pieces:
      frames = mp4.to_uint8(np.asarray(pixels))
      first = first or time.monotonic() - started
      progress.update(made.append(frames))
  return made, first


def _whole_clip(parts, text, key, *, sampler, num_frames) -> Iterator[Any]:
  """A bidirectional clip, with a progress bar of its own."""
  steps = len(sampler.sigmas)
  with metrics.Progress(steps, "denoise", unit="step") as progress:
    yield from pipeline.whole_clip(
      parts,
      text,
      key,
      sampler=sampler,
      num_frames=num_frames,
      on_step=lambda: progress.update(1),
    )


def _write_results(config, prompts, made, report):
  """The contact sheet and the report, each complete or not at all."""
  folder = pathlib.Path(config.folder)
  mp4.write_png(folder / f"{config.name}-sheet.png", made.sheet(prompts))
  path = folder / f"{config.name}.json"
  atomic.write_text(path, json.dumps(report, indent=2) + "\n")
  print(
    f"{len(prompts)} videos of {report['frames']} frames in "
    f"{report['seconds_wall']:.1f} s: {folder}/{config.name}-*",
    flush=True,
  )


if __name__ == "__main__":
  cli.run(sample)
