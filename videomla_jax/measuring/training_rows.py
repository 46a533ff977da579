"""Rows of training: one step of every stage at reduced depth."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools

import jax
import ml_collections

from videomla_jax import sharding
from videomla_jax.costs import flops as flops_lib
from videomla_jax.measuring import random_networks
from videomla_jax.measuring import row as row_lib
from videomla_jax.ops import device
from videomla_jax.training import abstract_step
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import table

_STEPS = 3


def rows(
  *, stages: Mapping[str, ml_collections.ConfigDict], layers: int
) -> Iterator[row_lib.Row]:
  """Yields the rows.

  Args:
    stages: Config of each stage by its name.
    layers: Layers of every network, in place of its own number.
  """
  for name, values in stages.items():
    yield row_lib.Row(
      name="training_step",
      measure=functools.partial(_measure, values, layers),
      shape=f"{name}, {layers} layers",
      implementation="auto",
      direction="gradient",
    )


def for_one_clip(
  settings: settings_lib.Training, *, layers: int
) -> settings_lib.Training:
  """Returns settings of a step that reads one clip with shallow networks.

  Args:
    settings: Settings of a stage.
    layers: Layers of every network.
  """
  return dataclasses.replace(
    settings,
    data=dataclasses.replace(settings.data, batch_size=1),
    network={**settings.network, "num_layers": layers},
  )


def _measure(
  values: ml_collections.ConfigDict, layers: int
) -> list[row_lib.Figure]:
  """Compiles a step for one clip and times a few of them."""
  stage, settings = table.read(values)
  settings = for_one_clip(settings, layers=layers)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  step, arguments = abstract_step.step_and_arguments(stage, settings, mesh)
  operations = flops_lib.of(step, *arguments, trips=stage.mean_trips(settings))
  networks = random_networks.filled(
    abstract_step.abstract_networks(stage, settings, {})
  )
  with jax.set_mesh(mesh):
    program, figures = row_lib.compiled(step, *arguments)
    state = jax.jit(lambda n: stage.init(n, settings))(networks)
    batch, frozen = random_networks.filled(arguments[1]), stage.frozen(networks)
    key = jax.random.key(0)
    took, _ = row_lib.seconds_of_steps(
      lambda carry: program(carry[0], batch, key, frozen),
      (state, None),
      count=_STEPS,
    )
  found = [row_lib.Figure("", took * 1e3, "ms"), *figures]
  peak = device.current().peak
  if peak:
    share = operations / took / peak.bf16_flops
    found.append(row_lib.Figure("utilisation", share, "of the data sheet"))
  return found
