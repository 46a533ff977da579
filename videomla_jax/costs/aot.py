"""Compiles programs for NVIDIA GPUs on a machine without one.

XLA needs only a description of the GPU: the whole pipeline runs, partitioner,
autotuning by cost model, ptxas. What comes out is the program that the GPU
would run, with its memory and its machine code; how fast it runs is not known.

Needs the packages of the extra `aot`, and `JAX_PLATFORMS=cpu`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import importlib.util
import math
import os
import pathlib
import time
from typing import Any

import jax
from jax.experimental import topologies

from videomla_jax.costs import machine_code
from videomla_jax.ops import device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """A GPU that programs are compiled for; `device.PEAKS` has its peaks.

  Attributes:
    kind: Device kind as JAX names it.
    capability: Compute capability, major and minor.
    cores: Streaming multiprocessors.
    clock_ghz: Boost clock.
    memory_bytes: Device memory.
    l2_bytes: L2 cache.
    smem_bytes: Shared memory that one block may ask for.
    exps_per_clock: Exponentials per clock of one multiprocessor.
  """

  kind: str
  capability: tuple[int, int]
  cores: int
  clock_ghz: float
  memory_bytes: int
  l2_bytes: int
  smem_bytes: int
  exps_per_clock: int = 16

  @property
  def peak(self) -> device.Peak:
    """Matrix products and memory traffic per second."""
    return device.PEAKS[self.capability[0]]

  @property
  def exps(self) -> float:
    """Exponentials per second."""
    return self.exps_per_clock * self.cores * self.clock_ghz * 1e9

  def text(self) -> str:
    """XLA's GpuTargetConfig as a text proto."""
    major, minor = self.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {self.smem_bytes + 1024}
  shared_memory_per_block_optin: {self.smem_bytes}
  threads_per_core_limit: 2048
  core_count: {self.cores}
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(self.peak.bandwidth)}
  l2_cache_size: {self.l2_bytes}
  clock_rate_ghz: {self.clock_ghz}
  device_memory_size: {self.memory_bytes}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
device_description_str: "{self.kind}"
"""


TARGETS = {
  "b200": Target(
    kind="NVIDIA B200",
    capability=(10, 0),
    cores=148,
    clock_ghz=1.965,
    memory_bytes=189_400_000_000,
    l2_bytes=132_644_864,
    smem_bytes=232_448,
  ),
  "h100": Target(
    kind="NVIDIA H100",
    capability=(9, 0),
    cores=132,
    clock_ghz=1.98,
    memory_bytes=84_900_000_000,
    l2_bytes=52_428_800,
    smem_bytes=232_448,
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
  """A program and what the compiler says about it.

  Attributes:
    executable: JAX's compiled object; it cannot be called here.
    seconds: Wall time of lowering and compilation.
    argument_bytes: Per device, like the others.
    output_bytes: Results, donated ones included.
    temporary_bytes: What the program needs while it runs.
    alias_bytes: Donated arguments that are results.
  """

  executable: Any
  seconds: float
  argument_bytes: int
  output_bytes: int
  temporary_bytes: int
  alias_bytes: int

  @property
  def text(self) -> str:
    """The optimised HLO."""
    return self.executable.as_text()

  def serialized(self) -> bytes:
    """The program with its machine code, in XLA's own packaging."""
    return self.executable.runtime_executable().serialize()


XLA_DUMPS = "xla"  # folder in that of `dump_environment`


def check_toolchain() -> None:
  """Raises `RuntimeError` if the cross-compiler is not installed."""
  for name in ("jax_cuda13_plugin", "nvidia"):
    if importlib.util.find_spec(name) is None:
      raise RuntimeError(
        "compiling for a GPU needs JAX's CUDA plugin and ptxas; run "
        "pip install 'videomla-jax[aot]'."
      )


def prepare_environment() -> None:
  """Puts the installed ptxas first on PATH; an old one fails on new PTX."""
  check_toolchain()
  tools = str(pathlib.Path(machine_code.tool("ptxas")).parent)
  path = os.environ.get("PATH", "").split(os.pathsep)
  others = [folder for folder in path if folder != tools]
  os.environ["PATH"] = os.pathsep.join([tools, *others])


def dump_environment(folder: pathlib.Path) -> dict[str, str]:
  """Environment in which Mosaic and XLA write reports to `folder`.

  Args:
    folder: An empty folder; `tools` is made in it. Mosaic writes machine code
      and its figures to the folder, XLA the launches of kernels to `xla`.

  Returns:
    Variables that must be set before JAX starts, so: of a new process.
  """
  check_toolchain()
  tools = folder / "tools" / "bin"
  tools.mkdir(parents=True, exist_ok=True)
  for name in ("ptxas", "nvdisasm"):
    link = tools / name
    if not link.exists():
      link.symlink_to(machine_code.tool(name))
  return {
    "JAX_PLATFORMS": "cpu",
    "CUDA_ROOT": str(tools.parent),
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
    f"--xla_dump_to={folder / XLA_DUMPS} --xla_dump_hlo_as_text",
    "MOSAIC_GPU_DUMP_TO": str(folder),
    "MOSAIC_GPU_DUMP_PTX": "1",
    "MOSAIC_GPU_DUMP_PTXAS": "1",
    "MOSAIC_GPU_DUMP_SASS": "1",
  }


def mesh(
  target: str, shape: Sequence[int] = (1,), axes: Sequence[str] = ("data",)
) -> jax.sharding.Mesh:
  """A mesh of GPUs that are not there.

  Args:
    target: A key of `TARGETS`.
    shape: Devices along each axis.
    axes: Names of the axes.

  Raises:
    ValueError: If the target is unknown.
    RuntimeError: If the toolchain is not installed.
  """
  if target not in TARGETS:
    raise ValueError(
      f"target={target!r} is unknown; use one of {sorted(TARGETS)}."
    )
  prepare_environment()
  description = topologies.get_topology_desc(
    platform="cuda",
    topology_name=target,
    topology=f"1x1x{math.prod(shape)}",
    target_config=TARGETS[target].text(),
  )
  return topologies.make_mesh(
    topo=description, mesh_shape=tuple(shape), axis_names=tuple(axes)
  )


def place(tree: Any, devices: jax.sharding.Mesh, *spec: str | None) -> Any:
  """Abstract arrays with a sharding: all replicated, or as `spec` says."""
  sharding = jax.sharding.NamedSharding(
    devices, jax.sharding.PartitionSpec(*spec)
  )
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )


def compile_for(
  function: Callable[..., Any], *args: Any, devices: jax.sharding.Mesh, **kwargs
) -> Compiled:
  """Lowers and compiles a jitted function.

  Args:
    function: A function or the result of `jax.jit`.
    *args: Abstract arrays, see `place`.
    devices: See `mesh`.
    **kwargs: Further arguments, static ones among them.
  """
  jitted = function if hasattr(function, "lower") else jax.jit(function)
  started = time.monotonic()
  with jax.set_mesh(devices):
    executable = jitted.lower(*args, **kwargs).compile()
  seconds = time.monotonic() - started
  memory = executable.memory_analysis()
  return Compiled(
    executable=executable,
    seconds=seconds,
    argument_bytes=memory.argument_size_in_bytes,
    output_bytes=memory.output_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    alias_bytes=memory.alias_size_in_bytes,
  )


def roofline(
  *, flops: float, bytes_moved: float, exps: float, target: Target
) -> tuple[float, str]:
  """Least time of a kernel whose units never wait for each other.

  Args:
    flops: Tensor-core operations, two per multiply-add.
    bytes_moved: Of memory traffic.
    exps: Exponentials.
    target: Device.

  Returns:
    Microseconds and what they are bound by: "matmul", "exp" or "memory".
  """
  times = {
    "matmul": flops / target.peak.bf16_flops,
    "exp": exps / target.exps,
    "memory": bytes_moved / target.peak.bandwidth,
  }
  bound = max(times, key=times.__getitem__)
  return times[bound] * 1e6, bound
