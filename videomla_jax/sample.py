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
import time

from jaxtyping import Array, Float

from videomla_jax.costs import attention_choice
from videomla_jax.costs import memory
from videomla_jax.generation import contact_sheet
from videomla_jax.generation import job as job_lib
from videomla_jax.generation import pipeline as pipeline_lib
from videomla_jax.generation import request as request_lib
from videomla_jax.generation import result_files
from videomla_jax.generation import sources
from videomla_jax.generation import video_files
from videomla_jax.runtime import cli
from videomla_jax.runtime import compiled_programs
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import progress_bar
from videomla_jax.storage import atomic

Report = dict[str, object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
  """How long a generation took, compilation included.

  Attributes:
    total: Seconds until every file was complete.
    first_chunk: Seconds until the first chunk was decoded.
    compiling: Seconds of these in which XLA compiled or loaded programs.
    stopped: What stopped it before its end, if anything did.
  """

  total: float
  first_chunk: float
  compiling: float
  stopped: KeyboardInterrupt | None = None


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
  # What cannot be written would cost the whole generation.
  results = result_files.check(job)
  for prompt, tokens in job.cut.items():
    print(
      f"prompt {prompt[:60]!r} has {tokens} tokens, of which the model sees "
      "the first 512",
      flush=True,
    )
  text = job.embed(request.prompts)
  # A release has its text encoder unloaded by now, so the two never coexist.
  pipeline = source.load()
  # Sizes are printed before anything compiles, so that one that does not fit is
  # seen at once.
  sizes = job.needs(pipeline)
  given = job.describe_given(pipeline)
  attention = job.attention(pipeline)
  lines = [*sizes.lines(), *attention_choice.lines(attention), *given]
  print(*lines, sep="\n", flush=True)
  files = video_files.VideoFiles(
    results.videos,
    fps=source.fps,
    scale=request.output.scale,
    num_frames=job.num_frames,
  )
  timing = _write_videos(files, job, pipeline, text)
  contact_sheet.write_png(results.sheet, files.sheet(request.prompts))
  report = _report(job, files, results, sizes, timing, given=given)
  report["attention"] = attention
  atomic.write_text(results.report, json.dumps(report, indent=2) + "\n")
  asked = f" of {job.num_frames}" if timing.stopped else ""
  print(
    f"{len(request.prompts)} videos of {files.num_frames}{asked} frames in "
    f"{timing.total:.1f} s: {results.report.parent}/{request.output.name}-*",
    flush=True,
  )
  if timing.stopped:
    raise timing.stopped
  return report


def _write_videos(
  files: video_files.VideoFiles,
  job: job_lib.Job,
  pipeline: pipeline_lib.Pipeline,
  text: Float[Array, "R M E"],
) -> Timing:
  """Writes all frames as they come, under a progress bar."""
  # Compilation counts: it is what a person waits for.
  started = time.monotonic()
  arrived: list[float] = []
  stopped = None
  try:
    with compiled_programs.clock() as compiling:
      _write_frames(
        files, job, pipeline, text, lambda: arrived.append(time.monotonic())
      )
  except KeyboardInterrupt as error:
    if not files.num_frames:
      raise  # There is nothing to keep.
    stopped = error
  return Timing(
    total=time.monotonic() - started,
    first_chunk=arrived[0] - started if arrived else 0.0,
    compiling=compiling.seconds,
    stopped=stopped,
  )


def _write_frames(
  files: video_files.VideoFiles,
  job: job_lib.Job,
  pipeline: pipeline_lib.Pipeline,
  text: Float[Array, "R M E"],
  on_chunk: Callable[[], object],
) -> None:
  """Writes all frames; `on_chunk` is called when one is decoded."""
  with contextlib.ExitStack() as stack:
    stack.enter_context(files)
    progress = stack.enter_context(
      progress_bar.Progress(job.num_frames, "sample", unit="frame")
    )
    # Given frames are written here, since the stream does not repeat them.
    progress.update(files.append(job.first_frames(pipeline)))
    on_step = _show_steps(stack, job)
    for frames in job.chunks(pipeline, text, on_step=on_step):
      on_chunk()
      progress.update(files.append(frames))


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
  job: job_lib.Job,
  files: video_files.VideoFiles,
  results: result_files.Results,
  sizes: memory.Needs,
  timing: Timing,
  *,
  given: Sequence[str],
) -> Report:
  """Says what was made and used, of which sizes and how fast."""
  height, width = job.source.pixels
  frames = len(job.request.prompts) * files.num_frames
  return dict(
    **job.described(),
    frames=files.num_frames,
    frames_asked=job.num_frames,
    interrupted=str(timing.stopped) if timing.stopped else None,
    height=height,
    width=width,
    fps=job.source.fps,
    seconds_wall=round(timing.total, 3),
    seconds_to_first_chunk=round(timing.first_chunk, 3),
    seconds_compiling=round(timing.compiling, 3),
    frames_per_second=round(frames / timing.total, 2),
    # Seconds of video, all videos together, per second of waiting.
    real_time_factor=round(frames / job.source.fps / timing.total, 3),
    cache_scalars_per_token_layer=sizes.scalars_per_token_layer,
    dense_scalars_per_token_layer=sizes.dense_scalars_per_token_layer,
    cache_bytes=sizes.cache_bytes,
    dense_cache_bytes=sizes.dense_cache_bytes,
    decoder=job.source.decoder,
    decoder_bytes=sizes.decoder_bytes,
    decoder_state_bytes=dict(sizes.decoder_states),
    parameters=sizes.parameters,
    predicted_peak_bytes=sizes.peak_bytes,
    given=[*given],
    videos=[path.name for path in results.videos],
  )


if __name__ == "__main__":
  cli.run(sample)
