"""The GPUs that programs are compiled for, and the least time they allow.

The numbers are those of the data sheets.
"""

import dataclasses

from videomla_jax.ops import device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """A GPU that programs are compiled for; `device.PEAKS` has its rates.

  Attributes:
    kind: Name of the device in JAX.
    capability: Compute capability, major and minor number.
    cores: Number of streaming multiprocessors.
    clock_ghz: Boost clock, GHz.
    memory_bytes: Size of the device memory.
    l2_bytes: Size of the L2 cache.
    smem_bytes: Shared memory that one thread block may ask for.
    exps_per_clock: Exponentials that one multiprocessor computes per clock.
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
    """Matrix products and memory traffic per second, at most."""
    return device.PEAKS[self.capability[0]]

  @property
  def exps(self) -> float:
    """Exponentials per second of the whole GPU, at most."""
    return self.exps_per_clock * self.cores * self.clock_ghz * 1e9

  def text(self) -> str:
    """Writes the GPU as XLA's GpuTargetConfig, a text proto."""
    # CUDA keeps 1 KiB of shared memory of every thread block for itself, so a
    # multiprocessor has that much more than one block may ask for. Without a
    # version of CUDA, XLA takes cuBLAS for one that has no float8 products.
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
  runtime_version: "13.0.0"
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


def roofline(
  *, flops: float, bytes_moved: float, exps: float, target: Target
) -> tuple[float, str]:
  """Computes the least time of a kernel whose units never wait for each other.

  Args:
    flops: Tensor-core operations, two per multiply-add.
    bytes_moved: Bytes of memory traffic.
    exps: Number of exponentials.
    target: The GPU.

  Returns:
    Microseconds, and what takes them: "matmul", "exp" or "memory".
  """
  times = {
    "matmul": flops / target.peak.bf16_flops,
    "exp": exps / target.exps,
    "memory": bytes_moved / target.peak.bandwidth,
  }
  bound = max(times, key=times.__getitem__)
  return times[bound] * 1e6, bound
