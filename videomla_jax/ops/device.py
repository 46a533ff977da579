"""The device that a program is traced for.

Normally the first local device; under `jax.set_mesh` that of the mesh, so that
a program compiled for a GPU on a machine without one chooses its kernels like
on the GPU.
"""

import dataclasses
import math

import jax

# Compute capability of the devices that a mesh only names.
CAPABILITIES = {
  "NVIDIA B200": 10.0,
  "NVIDIA GB200": 10.0,
  "NVIDIA H200": 9.0,
  "NVIDIA H100 80GB HBM3": 9.0,
  "NVIDIA H100": 9.0,
  "NVIDIA A100-SXM4-80GB": 8.0,
  "NVIDIA A100-SXM4-40GB": 8.0,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
  """What the choice of a kernel depends on.

  Attributes:
    kind: Name that the platform gives.
    platform: "cpu", "gpu", "tpu".
    capability: CUDA compute capability, 0 elsewhere.
  """

  kind: str
  platform: str
  capability: float = 0.0

  @property
  def intensity(self) -> float:
    """bfloat16 multiply-adds per byte of memory traffic; infinite if unknown.

    Data sheets, dense: B200 2,250 TFLOP/s and 7.7 TB/s; H100 SXM 989 and 3.35;
    A100 312 and 2.0.
    """
    tables = {10: (2250, 7.7), 9: (989, 3.35), 8: (312, 2.0)}
    if int(self.capability) not in tables:
      return math.inf
    tera_flops, terabytes = tables[int(self.capability)]
    return tera_flops / 2 / terabytes

  @property
  def is_nvidia(self) -> bool:
    """True for CUDA devices."""
    return self.capability > 0


def current() -> Device:
  """The device of the mesh in use, or the first local one."""
  mesh = jax.sharding.get_abstract_mesh()
  named = None if mesh.empty else mesh.abstract_device
  if named is not None:
    platform = "gpu" if named.platform in ("cuda", "gpu") else named.platform
    capability = CAPABILITIES.get(named.device_kind, 0.0)
    return Device(
      kind=named.device_kind, platform=platform, capability=capability
    )
  first = jax.local_devices()[0]
  capability = getattr(first, "compute_capability", None)
  return Device(
    kind=first.device_kind,
    platform=first.platform,
    capability=float(capability or 0.0),
  )
