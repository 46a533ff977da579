"""Tests of meshes: the rules, and equal numbers on every mesh."""

from collections.abc import Callable
import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from tests import tiny_model
from tests import tolerances
from videomla_jax import sharding
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.storage import tree_names
from videomla_jax.training import optim

P = jax.sharding.PartitionSpec
_ROOT = pathlib.Path(__file__).parents[1]
# Compiling takes most of the time, so that only the mesh with every axis has all
# stages: a regression of one network, and a rollout with three, are the others'.
_MESHES = {
  "one": ["all", "data=1"],
  "data": ["teacher_forcing", "data=8"],
  "fsdp": ["teacher_forcing,student", "fsdp=8"],
  "mixed": ["all", "fsdp=2", "sequence=2", "tensor=2"],
  "processes": ["teacher_forcing,student", "data=2", "fsdp=4"],
}


def _abstract(**sizes: int) -> jax.sharding.AbstractMesh:
  shape = [sizes.get(name, 1) for name in sharding.AXES]
  return jax.sharding.AbstractMesh(tuple(shape), sharding.AXES)


def _command(name: str, output: pathlib.Path, seed: int) -> list[str]:
  program = ["-m", "tests.meshes", str(output), str(seed), *_MESHES[name]]
  if name != "processes":
    return [sys.executable, *program]
  start = [
    "-m",
    "videomla_jax.runtime.launch_local",
    "--processes=2",
    "--devices=4",
  ]
  return [sys.executable, *start, "--", *program]


@pytest.fixture(scope="module")
def results(
  tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], dict[str, np.ndarray]]:
  """Losses and gradients of every stage on every mesh."""
  folder = tmp_path_factory.mktemp("meshes")
  seed = int(np.random.default_rng().integers(2**31))
  print(f"meshes of seed {seed}")
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    # Compiling is most of the time, and needs no optimisation here.
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
    "--xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
  }

  def run(name: str) -> None:
    done = subprocess.run(
      _command(name, folder / f"{name}.npz", seed),
      cwd=_ROOT,
      env=environment,
      capture_output=True,
      text=True,
      timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]

  # One after the other: processes that wait for each other on a loaded machine
  # give up after half a minute.
  for name in _MESHES:
    run(name)
  return lambda name: dict(np.load(folder / f"{name}.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in _MESHES if n != "one"])
def test_losses_gradients_and_videos_are_those_of_one_device(
  results, name
) -> None:
  ours, expected = results(name), results("one")
  stages = {n.split("/")[0] for n in ours} - {"collectives"}
  asked = _MESHES[name][0]
  asked = [*meshes.TRAINED] if asked == "all" else asked.split(",")
  assert stages == {*asked, "rollout"}
  assert ours.keys() == {
    n for n in expected if n.split("/")[0] in stages | {"collectives"}
  }
  for key in sorted(set(ours) - {"collectives"}):
    tolerances.assert_close(ours[key], expected[key], "float32")


def _traffic(result: dict[str, np.ndarray]) -> dict[str, set[int]]:
  """Elements of what travels, by kind of collective."""
  traffic: dict[str, set[int]] = {}
  for kind, size in (x.split() for x in result["collectives"]):
    traffic.setdefault(kind, set()).add(int(size))
  return traffic


def _weights() -> set[int]:
  """Elements of the weights of one layer, of all networks."""
  flat = tree_names.flat_tree(meshes.networks(0))
  return {
    int(np.prod(x.shape[1:] if "/blocks/" in name else x.shape))
    for name, x in flat.items()
  }


def test_copies_of_the_model_only_add_up_gradients(results) -> None:
  assert set(_traffic(results("data"))) == {"all-reduce"}
  assert not len(results("one")["collectives"])


def test_split_weights_are_gathered_and_nothing_else_travels(results) -> None:
  traffic = _traffic(results("fsdp"))
  # XLA for CPUs reduces gradients and takes the part, GPUs reduce-scatter.
  assert set(traffic) == {"all-gather", "all-reduce"}
  assert traffic["all-gather"] <= _weights()


def test_every_large_parameter_of_wan_is_split() -> None:
  model = jax.eval_shape(
    lambda: wan.WanDiT(wan_config.wan_1p3b(), rngs=wan.nnx.Rngs(0))
  )
  for sizes in (dict(fsdp=64), dict(fsdp=8, tensor=4)):
    mesh = _abstract(**sizes)
    where = tree_names.flat_tree(sharding.shardings(model, mesh))
    for name, x in tree_names.flat_tree(model).items():
      part = np.prod(where[name].shard_shape(x.shape))
      if x.size > 2e6:
        assert part <= x.size / sizes["fsdp"], name
  held = sharding.bytes_per_device(model, _abstract(fsdp=64))
  whole = sharding.bytes_per_device(model, _abstract())
  assert whole / 64 < held < whole / 48  # norms and biases are whole


def test_layers_apart_lie_as_those_of_a_stack(seed) -> None:
  rng = np.random.default_rng(seed)
  model = tiny_model.build("latent", rng, spare_memory=False)
  apart = wan.with_layers_apart(model)
  stacked, own = (
    {n: s.spec for n, s in tree_names.flat_tree(where).items()}
    for where in (
      sharding.shardings(x, _abstract(fsdp=2, tensor=2)) for x in (model, apart)
    )
  )
  names = {n: re.sub(r"blocks/\d+/", "blocks/", n) for n in own}
  assert {*names.values()} == {*stacked}
  for name, spec in own.items():
    layers = "blocks/" in name
    assert P(*[None] * layers, *spec) == stacked[names[name]]


def test_moments_and_averages_lie_as_their_parameters(seed) -> None:
  settings = meshes.settings("teacher_forcing").optim
  settings = dataclasses.replace(settings, b1=0.9)  # with a first moment
  model = tiny_model.build("latent", np.random.default_rng(seed))
  state = jax.eval_shape(lambda m: optim.init(m, settings), model)
  where = sharding.shardings(state, _abstract(fsdp=2))
  flat = {n: s.spec for n, s in tree_names.flat_tree(where).items()}
  name = "blocks/ffn/into/kernel/value"
  specs = [spec for n, spec in flat.items() if n.endswith(name)]
  assert len(specs) == 4  # model, average, two moments
  assert set(specs) == {P(None, "fsdp", "tensor")}


def test_state_is_created_in_parts() -> None:
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  made = sharding.create(lambda x: {"a": x + 1}, jnp.zeros((4, 4)), mesh=mesh)
  assert made["a"].sharding.mesh.axis_names == sharding.AXES
  assert (made["a"] == 1).all()


@pytest.mark.parametrize(
  ("sizes", "words"),
  [
    (dict(data=3), "does not make the 1 devices"),
    (dict(data=-1, fsdp=-1), "one at most -1"),
    (dict(data=0), "must be positive"),
    (dict(data=-1, tensor=2), "must multiply to 1"),
  ],
)
def test_meshes_that_do_not_fit_are_refused(sizes, words) -> None:
  with pytest.raises(ValueError, match=words):
    sharding.make_mesh(**sizes, devices=jax.devices()[:1])


def test_what_a_mesh_cannot_split_is_refused(seed) -> None:
  model = tiny_model.build("latent", np.random.default_rng(seed))
  with pytest.raises(ValueError, match=r"fsdp=5 cannot split .* evenly"):
    sharding.shardings(model, _abstract(fsdp=5))
  mesh = _abstract(data=2, fsdp=2, sequence=3, tensor=5)
  with pytest.raises(ValueError, match=r"batch_size=6 .* multiple of 8"):
    sharding.check_batch(6, mesh, microbatches=2)
  sharding.check_batch(16, mesh, microbatches=2)
  with pytest.raises(ValueError, match=r"sequence=3 must divide the 4 tokens"):
    sharding.check_tokens(4, 5, mesh)
  with pytest.raises(ValueError, match=r"tensor=5 must divide the 12 heads"):
    sharding.check_tokens(3, 12, mesh)


def test_without_a_mesh_nothing_is_asked_for() -> None:
  x = jnp.ones((2, 3))
  assert sharding.constrain(x, "batch") is x
  doubled = sharding.per_device(lambda a: 2 * a, ("batch", x))
  assert (doubled == 2).all()
