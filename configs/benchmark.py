"""Measures costs: of a rollout, of kernels, of training steps, or of a GPU.

  python -m videomla_jax.benchmark --config=configs/benchmark.py
  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=kernels
  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=training
  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=memory
  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=work
  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=world
  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=gpu

`kernels`, `memory`, `work` and `world` need the extra `aot` and
JAX_PLATFORMS=cpu, and no GPU. `gpu` measures the one that is here.
Arguments: `suite=rollout|kernels|training|memory|work|world|gpu`,
`minutes=N` (of video, or of measuring), `runlocal`.
"""

import importlib
from typing import Any

import ml_collections

import common
from videomla_jax.chain import settings
from videomla_jax.costs import attention_shapes
from videomla_jax.training.stages import table
import world

# The config of a stage has the name of the stage.
STAGES = {name: importlib.import_module(name) for name in table.STAGES}
SUITES = ("rollout", "kernels", "training", "memory", "work", "world", "gpu")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config of one suite.

  Args:
    arg: What follows the colon behind the file.

  Raises:
    ValueError: If the suite is unknown.
  """
  arguments = common.parse_arg(arg, suite="rollout", minutes=10, runlocal=False)
  suite = arguments["suite"]
  if suite not in SUITES:
    raise ValueError(f"suite={suite!r} is unknown; use one of {SUITES}.")
  make = {
    "rollout": _rollout,
    "kernels": _kernels,
    "training": _training,
    "memory": _memory,
    "work": _work,
    "world": _world,
    "gpu": _gpu,
  }
  config = ml_collections.ConfigDict()
  config.suite = suite
  config.json = ""  # file to which the figures are written as well
  make[suite](config, arguments)
  return config


def _rollout(
  config: ml_collections.ConfigDict, arguments: dict[str, Any]
) -> None:
  """Rolls out the shipped small model."""
  config.checkpoint = "shipped:small_latent"
  config.seconds = 60.0 * arguments["minutes"]  # of video
  config.batch = 4  # videos side by side
  config.num_steps = 4  # network calls per chunk, as many as a student has
  if arguments["runlocal"]:
    config.seconds, config.batch, config.num_steps = 30.0, 1, 1


def _training(
  config: ml_collections.ConfigDict, arguments: dict[str, Any]
) -> None:
  """Counts the steps of all stages at 1.3B, latent where the student is."""
  del arguments
  config.targets = ("b200", "h100")
  config.utilisation = 0.4  # share of the peak; an assumption, nothing was run
  config.stages = {
    name: module.get_config("wan_1p3b") for name, module in STAGES.items()
  }


def _kernels(
  config: ml_collections.ConfigDict, arguments: dict[str, Any]
) -> None:
  """Compiles every real shape for every target; five minutes on two cores."""
  config.targets = ("b200", "h100")
  config.shapes = tuple(attention_shapes.SHAPES)
  if arguments["runlocal"]:
    config.targets, config.shapes = ("b200",), ("480p",)


def _memory(
  config: ml_collections.ConfigDict, arguments: dict[str, Any]
) -> None:
  """Compiles rollouts of 1.3B: half a minute a program, three for each case."""
  config.targets = ("b200", "h100")
  config.latents = (0, 64, 128, 192, 256, 512)  # d_c; 0 is dense attention
  config.windows = ("1+6", "21")  # sink and local frames; all of a clip
  config.spare_memory = True
  config.check = True  # compile the largest batch, too
  config.again = False  # compile what the record has already
  config.rows = ""  # a regular expression; empty takes all cases
  config.record = "docs/benchmark_memory.jsonl"
  if arguments["runlocal"]:
    config.targets, config.latents, config.windows = ("b200",), (192,), ("1+6",)
    config.check, config.record = False, "out/benchmark_memory.jsonl"


def _work(config: ml_collections.ConfigDict, arguments: dict[str, Any]) -> None:
  """Counts what 1.3B computes and moves: a program for each row."""
  config.targets = ("h100",)  # for which programs are compiled
  config.windows = ("1+6", "1+12", "21")  # sink and local frames; a clip's
  config.batches = (1, 8)  # videos side by side
  config.cache_dtypes = ("int8",)  # beside bfloat16
  config.products = ("float8_per_token", "float8_constant")
  config.decoders = ("wan", "tiny")
  config.checkpoints = ("shipped:small_student",)
  config.stages = {
    name: module.get_config("wan_1p3b") for name, module in STAGES.items()
  }
  config.again = False  # count what the record has already
  config.rows = ""  # a regular expression; empty takes all of them
  config.record = "docs/benchmark_work.jsonl"
  if arguments["runlocal"]:
    config.targets = ()
    config.stages = {"pretraining": config.stages["pretraining"]}
    config.record = "out/benchmark_work.jsonl"


def _world(
  config: ml_collections.ConfigDict, arguments: dict[str, Any]
) -> None:
  """Compiles steps of the whole way; minutes for each on two cores."""
  config.targets = ("h100",)
  whole = world.get_config("all")
  config.parts = {name: whole[name] for name in settings.PARTS}
  config.again = False  # compile what the record has already
  config.rows = ""  # a regular expression; empty takes all of them
  config.record = "docs/benchmark_world.jsonl"
  if arguments["runlocal"]:
    config.targets = ()
    config.record = "out/benchmark_world.jsonl"


def _gpu(config: ml_collections.ConfigDict, arguments: dict[str, Any]) -> None:
  """Measures everything at real sizes, which an H100 is to do in 5 minutes."""
  config.sizes = "real"
  config.rows = ""  # a regular expression; empty takes all of them
  config.minutes = float(arguments["minutes"])  # no row starts after these
  config.again = False  # measure what the record has already
  config.folder = "docs/benchmarks"  # a file for each kind of device
  config.stages = {
    name: module.get_config("wan_1p3b") for name, module in STAGES.items()
  }
  if arguments["runlocal"]:
    config.sizes, config.folder = "tiny", "out/benchmarks"
    for stage in config.stages.values():
      stage.data.update(num_frames=6, latent_shape=(4, 4, 16))
      stage.data.text_shape = (4, 4096)
      stage.network.update(text_tokens=4, ffn_width=64, dtype="float32")
      if "rollout" in stage:
        stage.rollout.num_frames = stage.data.num_frames
