"""Measures what a rollout costs, as ratios within one run and as bytes.

  python -m videomla_jax.benchmark --config=configs/benchmark.py

Prints cache bytes against the formula, compiled memory of a chunk and of whole
rollouts of two lengths, and the time of late chunks over early ones.
`:suite=kernels` compiles the attention kernels instead, see `kernels`;
`:suite=training` counts what a step of each stage computes, and what that takes
at a given share of a GPU's peak. Nothing is run or compiled for it.
"""

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomla_jax import shapes
from videomla_jax import sharding
from videomla_jax.costs import aot
from videomla_jax.costs import flops
from videomla_jax.costs import kernel_table
from videomla_jax.costs import memory
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.diffusion import stream
from videomla_jax.models import cache
from videomla_jax.ops.latent_attention import specs
from videomla_jax.runtime import cli
from videomla_jax.small_world import model as model_lib
from videomla_jax.storage import atomic
from videomla_jax.storage import output_folder
from videomla_jax.training import abstract_step
from videomla_jax.training.stages import table


def compiled_bytes(
  model: model_lib.VideoModel,
  *,
  batch: int,
  sampler: sampling.Sampler,
  num_frames: int,
) -> dict[str, int]:
  """Memory of the one-jit rollout of a length, from the compiler.

  Returns:
    Bytes of temporaries, of aliased (donated) state and of the latents that
    are handed back.
  """
  window = model.config.window
  frame = model.latent_shape()
  chunks = shapes.round_up(num_frames, window.chunk_frames)
  chunks //= window.chunk_frames
  state = jax.eval_shape(
    lambda keys: rollout.Rollout(
      rollout.empty_cache(
        model.dit,
        batch=batch * sampler.rows_per_video,
        frame=frame,
        window=window,
        max_frames=num_frames,
      ),
      keys,
      jnp.zeros((), jnp.int32),
    ),
    jax.random.split(jax.random.key(0), batch),
  )
  network = model.dit.config
  text = jax.ShapeDtypeStruct(
    (batch * sampler.rows_per_video, network.text_tokens, network.text_dim),
    jnp.float32,
  )
  compiled = rollout.scan_chunks.lower(
    model.dit,
    state,
    text,
    window=window,
    sampler=sampler,
    chunks=chunks,
    frame=frame,
  ).compile()
  analysis: Any = compiled.memory_analysis()
  return dict(
    temporaries=analysis.temp_size_in_bytes,
    aliased=analysis.alias_size_in_bytes,
    latents=4 * batch * chunks * window.chunk_frames * int(np.prod(frame)),
  )


def chunk_seconds(
  model: model_lib.VideoModel,
  *,
  batch: int,
  sampler: sampling.Sampler,
  num_frames: int,
) -> tuple[np.ndarray, cache.Cache]:
  """Wall time of every chunk of one streamed rollout, and its last cache."""
  network = model.dit.config
  text = jnp.zeros(
    (batch * sampler.rows_per_video, network.text_tokens, network.text_dim)
  )
  chunks = stream.Stream(
    model.dit,
    text,
    jax.random.key(0),
    frame=model.latent_shape(),
    window=model.config.window,
    sampler=sampler,
    max_frames=num_frames,
  )
  times, last = [], time.perf_counter()
  for latents in chunks:
    latents.block_until_ready()
    now = time.perf_counter()
    times.append(now - last)
    last = now
  return np.asarray(times), chunks.state.cache


def time_ratio(seconds: np.ndarray) -> dict[str, float]:
  """Median of the last fifth of chunks over that of the first fifth.

  The first chunks, which compile and fill the window, and the last one, behind
  which nothing runs, are left out.
  """
  steady = seconds[5:-1]
  fifth = max(len(steady) // 5, 1)
  first, last = np.median(steady[:fifth]), np.median(steady[-fifth:])
  return dict(
    first_seconds=float(first),
    last_seconds=float(last),
    ratio=float(last / first),
    chunks=len(seconds),
  )


def kernel_suite(config: Any) -> list[kernel_table.Row]:
  """Compiles the attention kernels, prints a table and writes JSON lines.

  Args:
    config: See configs/benchmark.py.

  Raises:
    ValueError: If a target or a shape is unknown.
    RuntimeError: If the cross-compiler is not installed.
  """
  known = {"targets": list(aot.TARGETS), "shapes": list(specs.SHAPES)}
  for name, names in known.items():
    unknown = set(config[name]) - set(names)
    if unknown or not config[name]:
      what = (
        f"{name}={sorted(unknown)} are unknown"
        if unknown
        else (f"{name} is empty")
      )
      raise ValueError(f"{what}; use some of {names}.")
  made, lines = [], []
  found = kernel_table.rows(targets=config.targets, shapes=config.shapes)
  for row in found:
    print(kernel_table.line(row), flush=True)
    made.append(row)
    lines.append(json.dumps(dataclasses.asdict(row)))
    if config.json:  # Row by row: what is stopped leaves what it has.
      atomic.write_text(config.json, "\n".join(lines) + "\n")
  return made


def training_suite(config: Any) -> list[dict[str, Any]]:
  """Counts the operations of every stage for one clip; computes seconds.

  Args:
    config: See configs/benchmark.py.

  Raises:
    ValueError: If a target is unknown or the share is none.
  """
  unknown = sorted(set(config.targets) - set(aot.TARGETS))
  if unknown or not 0 < config.utilisation <= 1:
    raise ValueError(
      f"targets={unknown} are unknown (use some of {sorted(aot.TARGETS)}), or"
      f" utilisation={config.utilisation} is not above 0 and at most 1."
    )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  rows = []
  for name, values in config.stages.items():
    stage, settings = table.read(values)
    data = dataclasses.replace(settings.data, batch_size=1)
    settings = dataclasses.replace(settings, data=data)
    step, arguments = abstract_step.step_and_arguments(stage, settings, mesh)
    trips = stage.mean_trips(settings)
    operations = flops.of(step, *arguments, trips=trips)
    seconds = {
      target: operations
      / (config.utilisation * aot.TARGETS[target].peak.bf16_flops)
      for target in config.targets
    }
    rows.append(dict(stage=name, operations=operations, seconds=seconds))
    print(
      f"{name:32s}{operations / 1e15:8.2f} PFLOP a clip"
      + "".join(f"  {t} {s:6.2f} s" for t, s in seconds.items()),
      flush=True,
    )
  if config.json:
    atomic.write_text(config.json, json.dumps(rows, indent=1) + "\n")
  return rows


def benchmark(config: Any) -> Any:
  """Runs the suite of a config.

  Args:
    config: See configs/benchmark.py.
  """
  if config.json:
    output_folder.check(pathlib.Path(config.json).parent)
  suites = {
    "rollout": rollout_suite,
    "kernels": kernel_suite,
    "training": training_suite,
  }
  return suites[config.suite](config)


def rollout_suite(config: Any) -> dict[str, Any]:
  """Runs the rollout suite.

  Args:
    config: See configs/benchmark.py.

  Raises:
    ValueError: If the checkpoint or the length cannot work.
  """
  model = model_lib.load(config.checkpoint)
  fps = model.config.fps
  num_frames = round(config.seconds * fps)
  if num_frames < 12 * model.config.window.chunk_frames:
    raise ValueError(
      f"seconds={config.seconds} is too short to compare early and late "
      "chunks; use 10 or more."
    )
  sampler = sampling.euler(
    config.num_steps, shift=model.config.shift, guidance=3.0
  )
  call = dict(batch=config.batch, sampler=sampler)
  seconds, last_cache = chunk_seconds(model, **call, num_frames=num_frames)
  needs = memory.needs(
    model.dit,
    streams=config.batch * sampler.rows_per_video,
    frame=model.latent_shape(),
    window=model.config.window,
    max_frames=num_frames,
  )
  report = dict(
    step_time=time_ratio(seconds),
    cache_bytes=cache.num_bytes(last_cache),
    cache_bytes_predicted=needs.cache_bytes,
    peak_bytes_predicted=needs.peak_bytes,
    memory_ten_seconds=compiled_bytes(
      model, **call, num_frames=round(10 * fps)
    ),
    memory_whole=compiled_bytes(model, **call, num_frames=num_frames),
    seconds_of_video=config.seconds,
    batch=config.batch,
  )
  text = json.dumps(report, indent=2)
  print(text, flush=True)
  if config.json:
    atomic.write_text(config.json, text + "\n")
  return report


if __name__ == "__main__":
  cli.run(benchmark)
