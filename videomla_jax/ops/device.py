"""The device that a program is traced for.

It is the first local device, or under `jax.set_mesh` that of the mesh, so that
a program that is compiled for a GPU on a machine without one gets the kernels
that it would get on the GPU.
"""

import dataclasses
import math

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peak:
  """What a generation of devices can do at most, by data sheet.

  Attributes:
    bf16_flops: FLOP/s of dense products in bfloat16.
    bandwidth: Memory bytes per second.
  """

  bf16_flops: float
  bandwidth: float


# Keys are major numbers of the compute capability. Values are those of the
# largest GPU of each generation: B200, H100 SXM, A100 80 GB.
PEAKS = {
  10: Peak(bf16_flops=2.25e15, bandwidth=7.672e12),
  9: Peak(bf16_flops=9.89e14, bandwidth=3.35e12),
  8: Peak(bf16_flops=3.12e14, bandwidth=2.039e12),
}

# One chip of a TPU, by the name that JAX gives it: v5e, v5p and v6e.
TPU_PEAKS = {
  "TPU v5 lite": Peak(bf16_flops=1.97e14, bandwidth=8.19e11),
  "TPU v5": Peak(bf16_flops=4.59e14, bandwidth=2.765e12),
  "TPU v6 lite": Peak(bf16_flops=9.18e14, bandwidth=1.64e12),
}

# Compute capability by the name of a device: a mesh of devices that are absent
# has only their names.
CAPABILITIES = {
  "NVIDIA B200": 10.0,
  "NVIDIA GB200": 10.0,
  "NVIDIA H200": 9.0,
  "NVIDIA H100 80GB HBM3": 9.0,
  "NVIDIA H100": 9.0,
  "NVIDIA A100-SXM4-80GB": 8.0,
  "NVIDIA A100-SXM4-40GB": 8.0,
}

# How XLA compiles programs without gradients; other platforms ignore it. By
# itself it makes kernels of its own of all products, times them against cuBLAS,
# and takes cuBLAS for nearly all of ours, but by then a bias and a GELU have
# been left outside of the product: 168 MB per layer and pass at 480p.
PRODUCTS_BY_CUBLAS = {"xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
  """What the choice of a kernel depends on.

  Attributes:
    kind: Name that the platform gives the device.
    platform: "cpu", "gpu" or "tpu".
    capability: CUDA compute capability; 0 where there is no CUDA.
    present: Whether it is in this machine, so that programs can run on it.
  """

  kind: str
  platform: str
  capability: float = 0.0
  present: bool = True

  @property
  def peak(self) -> Peak | None:
    """Data sheet of the device; None if it is not known."""
    return TPU_PEAKS.get(self.kind) or PEAKS.get(int(self.capability))

  @property
  def intensity(self) -> float:
    """Multiply-adds in bfloat16 per byte of traffic; infinite if unknown."""
    peak = self.peak
    return peak.bf16_flops / 2 / peak.bandwidth if peak else math.inf


def current() -> Device:
  """Returns the device of the mesh in use, or the first local one."""
  mesh = jax.sharding.get_abstract_mesh()
  named = None if mesh.empty else mesh.abstract_device
  first = jax.local_devices()[0]
  # A device that is here tells its capability; one that is not has a name.
  if named is not None and named.device_kind != first.device_kind:
    platform = "gpu" if named.platform in ("cuda", "gpu") else named.platform
    capability = CAPABILITIES.get(named.device_kind, 0.0)
    return Device(
      kind=named.device_kind,
      platform=platform,
      capability=capability,
      present=False,
    )
  capability = getattr(first, "compute_capability", None)
  return Device(
    kind=first.device_kind,
    platform=first.platform,
    capability=float(capability or 0.0),
  )


def peak_memory_bytes() -> int | None:
  """Returns the most bytes that the first local device held at a time.

  None where the platform does not say.
  """
  # A backend that keeps no count returns None in place of a dictionary.
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("peak_bytes_in_use")
