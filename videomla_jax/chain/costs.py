"""What each part of the whole way needs on a GPU, from its compiled steps.

Nothing runs: a step of every part is compiled for the GPU, and its time is
computed by `costs.step_time` from what the program does.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import ml_collections

from videomla_jax.autoencoding import clips as clips_lib
from videomla_jax.autoencoding import programs
from videomla_jax.autoencoding import run as vae_run
from videomla_jax.autoencoding import settings as vae_settings
from videomla_jax.chain import settings as settings_lib
from videomla_jax.costs import aot
from videomla_jax.costs import flops as flops_lib
from videomla_jax.costs import gpus
from videomla_jax.costs import step_time
from videomla_jax.models import released
from videomla_jax.ops import convolution
from videomla_jax.runtime import config_reader
from videomla_jax.training import batches
from videomla_jax.training import networks
from videomla_jax.training.stages import table

VAE_IMAGES = "vae, single frames"  # the first half of the VAE's steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """What a step of one part needs.

  Attributes:
    target: Key of `gpus.TARGETS`.
    examples: Clips or single frames of a step.
    work: What its program does.
  """

  target: str
  examples: int
  work: step_time.Work

  def figures(self) -> dict[str, int | float]:
    """Returns counts, and times that are computed from them, for a record."""
    seconds = self.work.seconds(gpus.TARGETS[self.target].peak)
    return {
      "examples": self.examples,
      "kernels": self.work.kernels,
      "gigabytes": round(self.work.num_bytes / 1e9, 3),
      "gigaflops": round(self.work.flops / 1e9, 1),
      **{f"{k}_ms": round(1e3 * x, 2) for k, x in seconds.items()},
      "steps_per_second": round(1 / sum(seconds.values()), 1),
    }


def costs_of(
  configs: Mapping[str, ml_collections.ConfigDict],
  target: str,
  folder: pathlib.Path,
) -> Mapping[str, Callable[[], Cost]]:
  """Returns, by the name of a part, what compiles its step.

  The VAE has two kinds of steps, `VAE_IMAGES` and then those on clips.

  Args:
    configs: Config of each part, see `settings.read`.
    target: Key of `gpus.TARGETS`.
    folder: A folder in which a random VAE is written when a stage that needs
      one is compiled.
  """

  @functools.cache
  def vae() -> pathlib.Path:
    made = vae_run.new_vae(_vae_settings(configs["vae"]))
    released.save(folder / "vae", made)
    return folder / "vae"

  of_vae = functools.partial(_of_vae, configs["vae"], target)
  return {
    VAE_IMAGES: functools.partial(of_vae, images=True),
    "vae": functools.partial(of_vae, images=False),
  } | {
    name: functools.partial(_of_stage, configs[name], target, vae)
    for name in settings_lib.PARTS[1:]
  }


def _vae_settings(
  config: ml_collections.ConfigDict,
) -> vae_settings.Settings:
  """Returns the settings of training the VAE as on a GPU."""
  settings = config_reader.read(vae_settings.Settings, config)
  network = dataclasses.replace(settings.network, dtype="bfloat16")
  return dataclasses.replace(settings, network=network)


def _of_vae(
  config: ml_collections.ConfigDict, target: str, *, images: bool
) -> Cost:
  """Returns the cost of a step of the VAE, on single frames or on clips."""
  settings = _vae_settings(config)
  state = jax.eval_shape(
    lambda x: programs.start(x, settings=settings), vae_run.new_vae(settings)
  )
  source = clips_lib.open_source(settings.data, settings.seed)
  examples = settings.data.batch_size
  if images:
    examples = settings.images.batch_size
    source = source.of_images(examples)
  program = programs.Program(settings, source)
  step = jax.ShapeDtypeStruct((1,), jnp.int32)
  work = _work(
    program.steps, state, step, target=target, options=convolution.CHANNELS_LAST
  )
  return Cost(target=target, examples=examples, work=work)


def _of_stage(
  config: ml_collections.ConfigDict,
  target: str,
  vae: Callable[[], pathlib.Path],
) -> Cost:
  """Returns the cost of a stage of the DiT."""
  config = config.copy_and_resolve_references()
  config.data.vae = str(vae())
  config.network.dtype = "bfloat16"
  stage, settings = table.read(config)
  loaded = {}
  for role in stage.starts_from:
    kind = "dense" if role in stage.scores else settings.model.kind
    # Sizes of a dense network are not those of a latent one.
    model = dataclasses.replace(settings.model, kind=kind)
    changed = dataclasses.replace(settings, model=model)
    loaded[role] = jax.eval_shape(lambda s=changed: networks.build(s))
  state = jax.eval_shape(lambda x: stage.init(x, settings), loaded)
  examples = stage.examples_per_step(settings)
  batch = batches.abstract_prompts(settings.data, examples)
  if stage.reads_clips:
    data = settings.data
    shape = (examples, data.num_frames, *data.latent_shape)
    batch["latents"] = jax.ShapeDtypeStruct(shape, jnp.float16)
  step = stage.make_step(settings)
  wanted = stage.program(settings, 1)
  work = _work(
    lambda state, batch, key, frozen: step(
      state, batch, key, frozen=frozen, program=wanted
    ),
    state,
    batch,
    jax.eval_shape(lambda: jax.random.key(0)),
    stage.frozen(loaded),
    target=target,
    trips=stage.mean_trips(settings),
  )
  return Cost(target=target, examples=settings.data.batch_size, work=work)


def _work(
  function: Callable[..., PyTree],
  *args: PyTree,
  target: str,
  options: Mapping[str, bool] | None = None,
  trips: float | int = 1,
) -> step_time.Work:
  """Compiles a function and says what its program does."""
  devices = aot.mesh(target)
  placed = [aot.place(x, devices) for x in args]
  counted = flops_lib.of(function, *args, trips=trips)
  jitted = jax.jit(
    function, donate_argnums=0, compiler_options=dict(options or {})
  )
  compiled = aot.compile_for(jitted, *placed, devices=devices)
  return step_time.of_program(compiled.text, flops=counted, trips=trips)
