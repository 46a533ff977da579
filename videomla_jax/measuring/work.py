"""What chunk steps, decoders and training steps compute and move.

  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=work

Operations are counted in traces, and bytes in programs that are compiled for
GPUs that need not be here. `costs/chunk_time.py` turns both into times, and
docs/throughput.md shows them. Nothing is run.
"""

from collections.abc import Mapping
import dataclasses
import functools
import inspect
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from videomla_jax import sharding
from videomla_jax.costs import aot
from videomla_jax.costs import decoder_traffic
from videomla_jax.costs import flops
from videomla_jax.costs import gpus
from videomla_jax.costs import layer_traffic
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.measuring import chunk_programs
from videomla_jax.measuring import counted
from videomla_jax.measuring import record
from videomla_jax.measuring import rollout_rows
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import types
from videomla_jax.runtime import config_values
from videomla_jax.small_world import model as model_lib
from videomla_jax.training import abstract_step
from videomla_jax.training.stages import table

KINDS = ("latent", "dense")
_PASSES = len(rollout_rows.SAMPLER.sigmas)  # beside the one that commits
_TOKENS = chunk_programs.FRAME[0] * chunk_programs.FRAME[1] // 4  # of a frame
_SMALL_FRAMES = 240  # a minute of the small world
# Names of scopes in which attention is computed, by what it attends to.
_SELF, _TEXT = ("latent_attention", "dense_attention"), "text_attention"


def self_attention_flops(
  config: wan_config.WanConfig, case: rollout_rows.Case, form: types.Form
) -> float:
  """Counts the operations of self-attention in a chunk step, window full.

  Args:
    config: Sizes of the network.
    case: Window and videos side by side.
    form: "expanded" or "absorbed"; dense attention has the first only.
  """
  sizes, window = config.attention, case.window
  frames = window.sink_frames + (window.local_frames or 0)
  latent = sizes.kind == "latent"
  call = forms.Sizes(
    queries=window.chunk_frames * _TOKENS,
    keys=frames * _TOKENS,
    heads=sizes.num_heads,
    content_latent=sizes.d_c if latent else 0,
    rope=sizes.d_rope if latent else 0,
    content=sizes.d_nope if latent else sizes.head_dim,
    value=sizes.head_dim,
  )
  calls = case.videos * config.num_layers * (_PASSES + 1)
  return (
    2.0
    * calls
    * call.multiply_adds("absorbed" if form == "absorbed" else "expanded")
  )


def beside_bytes(
  program: aot.Compiled, config: wan_config.WanConfig
) -> tuple[int, int]:
  """Counts what a chunk step moves beside products and attention.

  Args:
    program: The chunk step.
    config: Sizes of the network.

  Returns:
    Bytes of all layers and passes, and those of them that copy weights.

  Raises:
    ValueError: If the program has other loops than those of its two passes.
  """
  loops = layer_traffic.layer_loops(program.text)
  if len(loops) != 2:
    raise ValueError(
      f"the program has {len(loops)} loops over layers; a chunk step has one "
      "for passes that denoise and one for the pass that commits."
    )
  weights = lambda loop: sum(x.num_bytes for x in loop if x.kind == "weights")
  # The pass that commits also writes the cache, so it moves more.
  passes = sorted(loops, key=layer_traffic.beside_products)
  counts = [config.num_layers * n for n in (_PASSES, 1)]
  moved, copied = (
    sum(n * of(loop) for n, loop in zip(counts, passes, strict=True))
    for of in (layer_traffic.beside_products, weights)
  )
  return moved, copied


def _chunk_step(
  config: wan_config.WanConfig, case: rollout_rows.Case, target: str
) -> dict[str, Any]:
  """Counts the work of a chunk step."""
  static = dict(
    window=case.window,
    sampler=rollout_rows.SAMPLER,
    chunks=1,
    frame=chunk_programs.FRAME,
  )
  # Counted without the compiler options of the jitted function, which tracing
  # inside of another program refuses.
  step = functools.partial(inspect.unwrap(rollout.scan_chunks), **static)
  # Products of eight bits have as many operations as others.
  plain = dataclasses.replace(case, products="")
  arguments = chunk_programs.rollout_arguments(config, plain)
  count = functools.partial(flops.of, step, *arguments)
  attention = sum(count(scope=scope) for scope in _SELF)
  text = count(scope=_TEXT)
  program = chunk_programs.chunk_step(config, case, target=target)
  moved, copied = beside_bytes(program, config)
  latent = config.attention.kind == "latent"
  return dict(
    product_flops=count() - attention - text,
    attention_flops=self_attention_flops(config, case, "expanded"),
    absorbed_flops=(
      self_attention_flops(config, case, "absorbed") if latent else None
    ),
    text_flops=text,
    beside_bytes=moved,
    weight_copy_bytes=copied,
    temp_bytes=program.temporary_bytes,
    compile_seconds=round(program.seconds, 1),
  )


def _small_chunk_step(
  checkpoint: str, videos: int, target: str
) -> dict[str, Any]:
  """Counts the kernels of a small model's chunk step, which bound it."""
  model = model_lib.load(checkpoint)
  sampler = sampling.few_step(shift=model.config.shift)
  window, frame = model.config.window, model.latent_shape()
  config = model.dit.config
  shape = (videos, config.text_tokens, config.text_dim)
  text = jax.ShapeDtypeStruct(shape, jnp.float32)

  def start(dit: wan.WanDiT, text: jax.Array) -> rollout.Rollout:
    return rollout.start(
      dit,
      text,
      jax.random.split(jax.random.key(0), videos),
      frame=frame,
      window=window,
      sampler=sampler,
      max_frames=_SMALL_FRAMES,
    )

  state = jax.eval_shape(start, model.dit, text)
  devices = aot.mesh(target)
  program = aot.compile_for(
    rollout.scan_chunks,
    *aot.place((model.dit, state, text), devices),
    devices=devices,
    window=window,
    sampler=sampler,
    chunks=1,
    frame=frame,
  )
  found = decoder_traffic.operations(program.text)
  return dict(
    kernels=sum(x.times for x in found),
    moved_bytes=sum(x.times * x.num_bytes for x in found),
    chunks=-(-_SMALL_FRAMES // window.chunk_frames),
    compile_seconds=round(program.seconds, 1),
  )


def _decode(name: str, target: str) -> dict[str, Any]:
  """Counts the work of decoding a chunk."""
  codec = chunk_programs.decoder(name)
  assert codec is not None
  program = chunk_programs.decode(codec, target=target)
  found = decoder_traffic.operations(program.text)
  return dict(
    product_flops=flops.of(*chunk_programs.decode_call(codec)),
    beside_bytes=decoder_traffic.beside_convolutions(found),
    temp_bytes=program.temporary_bytes,
    compile_seconds=round(program.seconds, 1),
  )


def _training_step(values: ml_collections.ConfigDict) -> dict[str, Any]:
  """Counts the operations of a training step for one clip."""
  stage, settings = table.read(values)
  data = dataclasses.replace(settings.data, batch_size=1)
  settings = dataclasses.replace(settings, data=data)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  step, arguments = abstract_step.step_and_arguments(stage, settings, mesh)
  count = functools.partial(
    flops.of, step, *arguments, trips=stage.mean_trips(settings)
  )
  attention = sum(count(scope=scope) for scope in (*_SELF, _TEXT))
  return dict(product_flops=count() - attention, attention_flops=attention)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkSuite:
  """Counts the work of Wan-1.3B at 480 x 832 for `costs/chunk_time.py`.

  Attributes:
    targets: Keys of `gpus.TARGETS` for which programs are compiled.
    windows: Keys of `chunk_programs.WINDOWS`.
    batches: Videos side by side.
    cache_dtypes: Further number formats of the latent cache, one video.
    products: Further ways to multiply, see `WanConfig`, one video.
    decoders: Names in `chunk_programs.DECODERS`.
    checkpoints: Small models whose chunk step of four videos is counted.
    stages: Config of each stage of training by its name.
    again: Whether rows that the record has are counted again.
    rows: Regular expression that a row must contain.
    record: File of the record, which is added to.
    json: File to which this run's lines are written as well; empty for none.
  """

  targets: tuple[str, ...]
  windows: tuple[str, ...]
  batches: tuple[int, ...]
  cache_dtypes: tuple[str, ...]
  products: tuple[str, ...]
  decoders: tuple[str, ...]
  checkpoints: tuple[str, ...]
  stages: Mapping[str, ml_collections.ConfigDict]
  again: bool
  rows: str
  record: config_values.Path
  json: config_values.Path

  def __post_init__(self) -> None:
    check = functools.partial(record.check_names, may_be_empty=True)
    check("targets", self.targets, gpus.TARGETS)
    check("windows", self.windows, chunk_programs.WINDOWS)
    check("cache_dtypes", self.cache_dtypes, quantise.LARGEST)
    check("products", self.products, [*filter(None, quantise.PRODUCTS)])
    check("decoders", self.decoders, chunk_programs.DECODERS[1:])
    for batch in self.batches:
      config_values.Range(1, 4096)(batch, "batches")
    record.check_pattern(self.rows)

  def _cases(self) -> list[tuple[str, rollout_rows.Case]]:
    """Returns the name of the window, and the rollout."""
    found = [
      (
        name,
        rollout_rows.Case(
          kind=kind, window=chunk_programs.WINDOWS[name], videos=videos
        ),
      )
      for kind, name, videos in itertools.product(
        KINDS, self.windows, self.batches
      )
    ]
    for name in self.windows[:1]:
      plain = rollout_rows.Case(window=chunk_programs.WINDOWS[name])
      changed = functools.partial(dataclasses.replace, plain)
      found += [(name, changed(cache_dtype=x)) for x in self.cache_dtypes]
      found += [(name, changed(products=x)) for x in self.products]
    return found

  def listed(self) -> list[counted.Row]:
    """Returns what is asked for."""
    found = []
    for target, (window, case) in itertools.product(
      self.targets, self._cases()
    ):
      config = wan_config.wan_1p3b(
        kind=case.kind, dtype="bfloat16", spare_memory=False
      )
      about = dict(
        name="chunk_step",
        attention=case.kind,
        window=window,
        batch=case.videos,
        cache=case.cache_dtype or "bfloat16",
        products=case.products or "bfloat16",
        target=target,
      )
      found.append(
        counted.Row(
          about=about,
          count=functools.partial(_chunk_step, config, case, target),
        )
      )
    for target, name in itertools.product(self.targets, self.decoders):
      about = dict(name="decode", decoder=name, target=target)
      found.append(
        counted.Row(about=about, count=functools.partial(_decode, name, target))
      )
    for target, name in itertools.product(self.targets, self.checkpoints):
      about = dict(
        name="small_chunk_step", checkpoint=name, batch=4, target=target
      )
      count = functools.partial(_small_chunk_step, name, 4, target)
      found.append(counted.Row(about=about, count=count))
    for name, values in self.stages.items():
      about = dict(name="training_step", stage=name)
      found.append(
        counted.Row(
          about=about, count=functools.partial(_training_step, values)
        )
      )
    return found

  def run(self) -> list[record.Line]:
    """Counts what the record does not have, and prints it.

    Returns:
      The lines of what was asked for.

    Raises:
      ValueError: If the record cannot be read or written, or no row matches.
      NotImplementedError: If the compiler is not installed.
    """
    return counted.gather(
      self.listed(),
      pattern=self.rows,
      again=self.again,
      record=self.record,
      json_file=self.json,
    )
