"""Compiles programs for GPUs and for TPU slices on a machine without them.

XLA needs only a description of the device. The whole pipeline runs: partitioner
and, for a GPU, autotuning by cost model and ptxas. The result is the program
that the device would run, with its memory and its machine code; a program that
does not fit into the memory of a TPU is refused. How fast it runs is not known.

This needs the packages of the extra `aot` or, for TPUs, of `tpu`, and
`JAX_PLATFORMS=cpu`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import math
import time
from typing import Any

import jax
from jax.experimental import topologies
from jaxtyping import PyTree

from videomla_jax.costs import gpus
from videomla_jax.costs import toolchain
from videomla_jax.costs import tpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
  """A compiled program, and what the compiler says about its memory.

  Attributes:
    executable: JAX's compiled object, which cannot be called here.
    seconds: Wall time of lowering and compilation.
    argument_bytes: Bytes of the arguments; per device, like the others.
    output_bytes: Bytes of the results, donated ones included.
    temporary_bytes: Bytes that the program needs while it runs. For a TPU this
      is the memory of the chip without what lies in its vector memory, and more
      than the compiler assigned where there are loops.
    alias_bytes: Bytes of donated arguments that become results.
  """

  executable: jax.stages.Compiled
  seconds: float
  argument_bytes: int
  output_bytes: int
  temporary_bytes: int
  alias_bytes: int

  @property
  def text(self) -> str:
    """The optimised HLO of the program."""
    return self.executable.as_text() or ""

  def serialized(self) -> bytes:
    """Returns the program with its machine code, in XLA's own packaging."""
    runtime: Any = self.executable.runtime_executable()  # untyped in JAX
    return runtime.serialize()


def mesh(
  target: str, shape: Sequence[int] = (1,), axes: Sequence[str] = ("data",)
) -> jax.sharding.Mesh:
  """Makes a mesh of devices that are not here.

  Args:
    target: Key of `gpus.TARGETS` or `tpus.TARGETS`.
    shape: Number of devices along each axis.
    axes: Names of the axes.

  Raises:
    ValueError: If the target is unknown, or has no slice of so many chips.
    NotImplementedError: If the compiler is not installed.
  """
  if target in gpus.TARGETS:
    described = _gpus(target, math.prod(shape))
  elif target in tpus.TARGETS:
    described = _tpus(target, math.prod(shape))
  else:
    known = sorted({*gpus.TARGETS, *tpus.TARGETS})
    raise ValueError(f"target={target!r} is unknown; use one of {known}.")
  return topologies.make_mesh(
    topo=described, mesh_shape=tuple(shape), axis_names=tuple(axes)
  )


def _gpus(target: str, count: int) -> topologies.TopologyDescription:
  """Describes GPUs of one host."""
  toolchain.prepare_environment()
  return topologies.get_topology_desc(
    platform="cuda",
    topology_name=target,
    # Slices, hosts of a slice, GPUs of a host.
    topology=f"1x1x{count}",
    target_config=gpus.TARGETS[target].text(),
  )


def _tpus(target: str, count: int) -> topologies.TopologyDescription:
  """Describes a slice; a host has four chips, or one that is alone."""
  arrangement = tpus.TARGETS[target].slice_of(count)
  toolchain.prepare_tpu_environment()
  bounds = (1, 1, 1) if count == 1 else (2, 2, 1)
  return topologies.get_topology_desc(
    platform="tpu",
    topology_name=f"{target}:{arrangement}",
    chips_per_host_bounds=bounds,
  )


def place(
  tree: PyTree, devices: jax.sharding.Mesh, *spec: str | None
) -> PyTree:
  """Gives abstract arrays a sharding.

  Args:
    tree: Arrays, real or abstract.
    devices: The mesh, see `mesh`.
    *spec: Mesh axis of each dimension; without any, arrays are replicated.
  """
  sharding = jax.sharding.NamedSharding(
    devices, jax.sharding.PartitionSpec(*spec)
  )
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )


def compile_for(
  function: Callable[..., PyTree],
  *args: PyTree,
  devices: jax.sharding.Mesh,
  **kwargs: PyTree,
) -> Compiled:
  """Lowers and compiles a function for devices that are not here.

  Args:
    function: A function, or the result of `jax.jit`.
    *args: Abstract arrays, see `place`.
    devices: The mesh, see `mesh`.
    **kwargs: Further arguments, static ones among them.
  """
  jitted: Any = function if hasattr(function, "lower") else jax.jit(function)
  started = time.monotonic()
  # Kernels are chosen for the devices of the mesh in use. Without it they would
  # be those of the CPU that compiles.
  with jax.set_mesh(devices):
    executable = jitted.lower(*args, **kwargs).compile()
  seconds = time.monotonic() - started
  memory: Any = executable.memory_analysis()  # untyped in JAX
  return Compiled(
    executable=executable,
    seconds=seconds,
    argument_bytes=memory.argument_size_in_bytes,
    output_bytes=memory.output_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    alias_bytes=memory.alias_size_in_bytes,
  )
