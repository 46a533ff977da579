"""Text to video: one MP4 per prompt, a contact sheet and a JSON report.

  python -m videomla_jax.sample --config=configs/sample.py:latent \
    --config.prompts="a slow three moving horizontally"

Small models and Wan, causal and bidirectional, take the same steps. Sizes are
printed before anything compiles. A causal model streams through a cache of
fixed size, so any length needs the same memory.
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import pathlib
import time

from jaxtyping import Array, Float

from videomla_jax.costs import memory
from videomla_jax.generation import contact_sheet
from videomla_jax.generation import job as job_lib
from videomla_jax.generation import pipeline as pipeline_lib
from videomla_jax.generation import request as request_lib
from videomla_jax.generation import sources
from videomla_jax.generation import video_files
from videomla_jax.runtime import cli
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import progress_bar
from videomla_jax.storage import atomic
from videomla_jax.storage import output_folder

Report = dict[str, object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
  """How long a generation took, compilation included.

  Attributes:
    total: Seconds until every file was complete.
    first_chunk: Seconds until the first chunk was decoded.
  """

  total: float
  first_chunk: float


def sample(config: config_reader.Values) -> Report:
  """Runs one config; everything is checked before the first compilation.

  Args:
    config: Values of the keys in `configs/sample.py`.

  Returns:
    The JSON report.

  Raises:
    ValueError: If the prompts, the checkpoint, the window or the output folder
      cannot work.
  """
  request = request_lib.Request.from_config(config)
  source = sources.open_source(request.networks)
  job = job_lib.prepare(request, source)
  # A folder that cannot be written to would cost the whole generation.
  folder = output_folder.check(request.output.folder)
  text = job.embed(request.prompts)
  # A release has its text encoder unloaded by now, so the two never coexist.
  pipeline = source.load()
  # Sizes are printed before anything compiles, so that one that does not fit is
  # seen at once.
  sizes = job.needs(pipeline)
  given = job.describe_given(pipeline)
  print(*sizes.lines(), *given, sep="\n", flush=True)
  files = _open_files(folder, job)
  timing = _write_videos(files, job, pipeline, text)
  sheet = folder / f"{request.output.name}-sheet.png"
  contact_sheet.write_png(sheet, files.sheet(request.prompts))
  report = _report(folder, job, sizes, timing, given)
  path = folder / f"{request.output.name}.json"
  atomic.write_text(path, json.dumps(report, indent=2) + "\n")
  print(
    f"{len(request.prompts)} videos of {job.num_frames} frames in "
    f"{timing.total:.1f} s: {folder}/{request.output.name}-*",
    flush=True,
  )
  return report


def _open_files(
  folder: pathlib.Path, job: job_lib.Job
) -> video_files.VideoFiles:
  """Opens one MP4 per prompt."""
  output = job.request.output
  return video_files.VideoFiles(
    video_files.paths(folder, job.request.prompts, name=output.name),
    fps=job.source.fps,
    scale=output.scale,
    num_frames=job.num_frames,
  )


def _write_videos(
  files: video_files.VideoFiles,
  job: job_lib.Job,
  pipeline: pipeline_lib.Pipeline,
  text: Float[Array, "R M E"],
) -> Timing:
  """Writes all frames as they come, under a progress bar."""
  # Compilation counts: it is what a person waits for.
  started, first = time.monotonic(), 0.0
  with contextlib.ExitStack() as stack:
    stack.enter_context(files)
    progress = stack.enter_context(
      progress_bar.Progress(job.num_frames, "sample", unit="frame")
    )
    # Given frames are written here, since the stream does not repeat them.
    progress.update(files.append(job.first_frames(pipeline)))
    on_step = _show_steps(stack, job)
    for frames in job.chunks(pipeline, text, on_step=on_step):
      first = first or time.monotonic() - started
      progress.update(files.append(frames))
  return Timing(total=time.monotonic() - started, first_chunk=first)


def _show_steps(
  stack: contextlib.ExitStack, job: job_lib.Job
) -> Callable[[], object]:
  """Opens a second bar for a clip that is made at once, and so comes late."""
  if job.request.mode == "causal":
    return lambda: None
  steps = len(job.sampler.sigmas)
  bar = stack.enter_context(
    progress_bar.Progress(steps, "denoise", unit="step")
  )
  return lambda: bar.update(1)


def _report(
  folder: pathlib.Path,
  job: job_lib.Job,
  sizes: memory.Needs,
  timing: Timing,
  given: Sequence[str],
) -> Report:
  """Says what was made, of which sizes and how fast."""
  request, output = job.request, job.request.output
  height, width = job.source.pixels
  frames = len(request.prompts) * job.num_frames
  files = video_files.paths(folder, request.prompts, name=output.name)
  return dict(
    prompts=[*request.prompts],
    mode=request.mode,
    frames=job.num_frames,
    height=height,
    width=width,
    fps=job.source.fps,
    seconds_wall=round(timing.total, 3),
    seconds_to_first_chunk=round(timing.first_chunk, 3),
    frames_per_second=round(frames / timing.total, 2),
    cache_scalars_per_token_layer=sizes.scalars_per_token_layer,
    dense_scalars_per_token_layer=sizes.dense_scalars_per_token_layer,
    cache_bytes=sizes.cache_bytes,
    dense_cache_bytes=sizes.dense_cache_bytes,
    decoder_bytes=sizes.decoder_bytes,
    parameters=sizes.parameters,
    predicted_peak_bytes=sizes.peak_bytes,
    checkpoint=request.networks.checkpoint,
    sampler=config_reader.to_dict(request.sampler),
    window=config_reader.to_dict(request.window),
    seed=request.seed,
    given=[*given],
    videos=[path.name for path in files],
  )


if __name__ == "__main__":
  cli.run(sample)
