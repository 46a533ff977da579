"""Measures what a rollout costs, as ratios within one run and as bytes.

  python -m videomla_jax.benchmark --config=configs/benchmark.py

Prints cache bytes against the formula, compiled memory of a chunk and of whole
rollouts of two lengths, and the time of late chunks over early ones.
`:suite=kernels` compiles the attention kernels instead, see
`costs/kernel_table.py`; `:suite=training` counts what a step of each stage
computes, and how long that takes at a given share of a GPU's peak. Nothing is
run or compiled for it. `:suite=memory` compiles rollouts of Wan-1.3B and tells
how many fit on a GPU, see `measuring/headroom.py`. `:suite=work` counts
what they compute and move, see `measuring/work.py`. `:suite=world` compiles a
step of each part of `configs/world.py` and computes its time, see
`chain/costs.py`. `:suite=gpu` measures the GPU that is here and adds to its
record, see `measuring/suite.py`.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import json
import pathlib
import tempfile
from typing import Annotated, Any

import jax
import ml_collections

from videomla_jax import sharding
from videomla_jax.chain import costs as chain_costs
from videomla_jax.costs import attention_choice
from videomla_jax.costs import attention_shapes
from videomla_jax.costs import flops
from videomla_jax.costs import gpus
from videomla_jax.costs import kernel_row
from videomla_jax.costs import kernel_table
from videomla_jax.costs import memory
from videomla_jax.costs import rollout_run
from videomla_jax.costs import tpus
from videomla_jax.diffusion import sampling
from videomla_jax.measuring import counted
from videomla_jax.measuring import headroom
from videomla_jax.measuring import record
from videomla_jax.measuring import suite as measuring_suite
from videomla_jax.measuring import work
from videomla_jax.models import cache
from videomla_jax.runtime import cli
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values
from videomla_jax.small_world import model as model_lib
from videomla_jax.storage import atomic
from videomla_jax.storage import output_folder
from videomla_jax.training import abstract_step
from videomla_jax.training.stages import table


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutSuite:
  """Times a rollout of a small model and predicts its memory.

  Attributes:
    checkpoint: Folder of a small model, or `shipped:NAME`.
    seconds: Length of the video.
    batch: Videos side by side.
    num_steps: Network calls per chunk.
    json: File for the report; empty for none.
  """

  checkpoint: config_values.Path
  seconds: config_values.Seconds
  batch: Annotated[int, config_values.Range(1, 10_000)]
  num_steps: Annotated[int, config_values.Range(1, 1000)]
  json: config_values.Path

  def run(self) -> dict[str, Any]:
    """Runs the rollout and returns the report.

    Raises:
      ValueError: If the checkpoint or the length cannot work.
    """
    model = model_lib.load(self.checkpoint)
    fps, window = model.config.fps, model.config.window
    frame, num_frames = model.latent_shape(), round(self.seconds * fps)
    # Of these the first fifth, after the first six, is compared with the last.
    if num_frames < 12 * window.chunk_frames:
      raise ValueError(
        f"seconds={self.seconds} is too short to compare early and late "
        "chunks; use 10 or more."
      )
    sampler = sampling.euler(
      self.num_steps, shift=model.config.shift, guidance=3.0
    )
    seconds, last_cache = rollout_run.chunk_seconds(
      model.dit,
      batch=self.batch,
      frame=frame,
      window=window,
      sampler=sampler,
      num_frames=num_frames,
    )
    rows = self.batch * sampler.rows_per_video
    needs = memory.needs(
      model.dit,
      rows=rows,
      frame=frame,
      window=window,
      max_frames=num_frames,
    )
    attention = attention_choice.of_rollout(
      model.dit.config,
      rows=rows,
      tokens=needs.tokens_per_frame,
      window=window,
      max_frames=num_frames,
    )
    # Two lengths show whether the memory of a rollout grows with the video.
    compiled = {
      length: rollout_run.compiled_bytes(
        model.dit,
        batch=self.batch,
        frame=frame,
        window=window,
        sampler=sampler,
        num_frames=length,
      )
      for length in (round(10 * fps), num_frames)
    }
    report = dict(
      step_time=rollout_run.time_ratio(seconds),
      cache_bytes=cache.num_bytes(last_cache),
      cache_bytes_predicted=needs.cache_bytes,
      peak_bytes_predicted=needs.peak_bytes,
      memory_ten_seconds=compiled[round(10 * fps)],
      memory_whole=compiled[num_frames],
      attention=attention,
      seconds_of_video=self.seconds,
      batch=self.batch,
    )
    text = json.dumps(report, indent=2)
    print(text, flush=True)
    if self.json:
      atomic.write_text(self.json, text + "\n")
    return report


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelSuite:
  """Compiles the attention kernels for GPUs that need not be there.

  Attributes:
    targets: Keys of `gpus.TARGETS`.
    shapes: Keys of `attention_shapes.SHAPES`.
    json: File for the rows, a line each; empty for none.
  """

  targets: tuple[str, ...]
  shapes: tuple[str, ...]
  json: config_values.Path

  def run(self) -> list[kernel_row.Row]:
    """Prints a table and returns its rows.

    Raises:
      ValueError: If a target or a shape is unknown.
      RuntimeError: If the cross-compiler is not installed.
    """
    record.check_names("targets", self.targets, gpus.TARGETS)
    record.check_names("shapes", self.shapes, attention_shapes.SHAPES)
    rows, lines = [], []
    for row in kernel_table.rows(targets=self.targets, shapes=self.shapes):
      print(kernel_row.line(row), flush=True)
      rows.append(row)
      lines.append(json.dumps(dataclasses.asdict(row)))
      if self.json:  # row by row, so that what is stopped leaves what it has
        atomic.write_text(self.json, "\n".join(lines) + "\n")
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSuite:
  """Counts the operations of a step of every stage, for one clip.

  Attributes:
    targets: Keys of `gpus.TARGETS` or `tpus.TARGETS`.
    utilisation: Share of a peak that is assumed, above 0 and at most 1.
    stages: Config of each stage by its name.
    json: File for the report; empty for none.
  """

  targets: tuple[str, ...]
  utilisation: float | int
  stages: Mapping[str, ml_collections.ConfigDict]
  json: config_values.Path

  def run(self) -> list[dict[str, Any]]:
    """Prints operations and seconds of each stage and returns them.

    Raises:
      ValueError: If a target is unknown or the share is out of range.
    """
    peaks = {name: target.peak for name, target in gpus.TARGETS.items()}
    peaks |= {name: target.peak for name, target in tpus.TARGETS.items()}
    unknown = sorted(set(self.targets) - set(peaks))
    if unknown or not 0 < self.utilisation <= 1:
      raise ValueError(
        f"targets={unknown} are unknown (use some of {sorted(peaks)}),"
        f" or utilisation={self.utilisation} is not above 0 and at most 1."
      )
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    rows = []
    for name, values in self.stages.items():
      stage, settings = table.read(values)
      # A batch of one cannot be split, hence the mesh of a single device.
      data = dataclasses.replace(settings.data, batch_size=1)
      settings = dataclasses.replace(settings, data=data)
      step, arguments = abstract_step.step_and_arguments(stage, settings, mesh)
      trips = stage.mean_trips(settings)
      operations = flops.of(step, *arguments, trips=trips)
      seconds = {
        target: operations / (self.utilisation * peaks[target].bf16_flops)
        for target in self.targets
      }
      rows.append(dict(stage=name, operations=operations, seconds=seconds))
      print(
        f"{name:32s}{operations / 1e15:8.2f} PFLOP a clip"
        + "".join(f"  {t} {s:6.2f} s" for t, s in seconds.items()),
        flush=True,
      )
    if self.json:
      atomic.write_text(self.json, json.dumps(rows, indent=1) + "\n")
    return rows


def _figures(cost: Callable[[], chain_costs.Cost]) -> Mapping[str, int | float]:
  """Compiles a step, and returns what is recorded of it."""
  return cost().figures()


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldSuite:
  """Compiles a step of every part of the colour world's training for GPUs.

  Attributes:
    targets: Keys of `gpus.TARGETS`.
    parts: Config of each part by its name, see `chain.settings.PARTS`.
    again: Whether parts that the record has are compiled again.
    rows: Regular expression that a part and its target must contain.
    record: File of the record, which is added to.
    json: File to which this run's lines are written as well; empty for none.
  """

  targets: tuple[str, ...]
  parts: Mapping[str, ml_collections.ConfigDict]
  again: bool
  rows: str
  record: config_values.Path
  json: config_values.Path

  def __post_init__(self) -> None:
    record.check_names("targets", self.targets, gpus.TARGETS, may_be_empty=True)
    record.check_pattern(self.rows)

  def run(self) -> list[record.Line]:
    """Compiles what the record does not have, and prints what steps need.

    Returns:
      The lines of what was asked for.

    Raises:
      ValueError: If the record cannot be read or written, or no part matches.
      NotImplementedError: If the compiler is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
      rows = [
        counted.Row(
          about=dict(name=name, target=target),
          count=functools.partial(_figures, cost),
        )
        for target in self.targets
        for name, cost in chain_costs.costs_of(
          self.parts, target, pathlib.Path(folder)
        ).items()
      ]
      return counted.gather(
        rows,
        pattern=self.rows,
        again=self.again,
        record=self.record,
        json_file=self.json,
      )


Suite = (
  RolloutSuite
  | KernelSuite
  | TrainingSuite
  | WorldSuite
  | headroom.MemorySuite
  | work.WorkSuite
  | measuring_suite.GpuSuite
)
# The suites by the name that a config gives; their fields are its keys.
SUITES: dict[str, type[Suite]] = {
  "rollout": RolloutSuite,
  "kernels": KernelSuite,
  "training": TrainingSuite,
  "world": WorldSuite,
  "memory": headroom.MemorySuite,
  "work": work.WorkSuite,
  "gpu": measuring_suite.GpuSuite,
}


def suite_of(config: ml_collections.ConfigDict) -> Suite:
  """Turns a config into the suite that it names.

  Args:
    config: What `configs/benchmark.py` returns.
  """
  values = dict(config.items())
  name = values.pop("suite", None)
  if name not in SUITES:
    raise ValueError(f"suite={name!r} is unknown; use one of {[*SUITES]}.")
  return config_reader.read(SUITES[name], values)


def benchmark(
  config: ml_collections.ConfigDict,
) -> dict[str, Any] | list[record.Line] | list[kernel_row.Row]:
  """Runs the suite of a config and returns its report.

  Args:
    config: What `configs/benchmark.py` returns.

  Raises:
    ValueError: If a field cannot work.
  """
  suite = suite_of(config)
  # A folder that cannot be written to would cost the whole measurement.
  if suite.json:
    output_folder.check_file(suite.json)
  return suite.run()


if __name__ == "__main__":
  cli.run(benchmark)
