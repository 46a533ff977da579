"""The TPUs that programs are compiled for.

The numbers are those of the data sheets, per chip. JAX calls the two cores of a
v5p one device.
"""

from collections.abc import Mapping
import dataclasses

from videomla_jax.ops import device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """A TPU that programs are compiled for; `device.TPU_PEAKS` has its rates.

  Attributes:
    kind: Name of the device in JAX.
    memory_bytes: Size of the memory of a chip.
    slices: How the chips of a slice are connected, by their number.
  """

  kind: str
  memory_bytes: int
  slices: Mapping[int, str]

  @property
  def peak(self) -> device.Peak:
    """Matrix products and memory traffic per second, at most."""
    return device.TPU_PEAKS[self.kind]

  def slice_of(self, chips: int) -> str:
    """Returns the arrangement of a slice.

    Args:
      chips: Number of chips.

    Raises:
      ValueError: If there are no slices of this size.
    """
    if chips not in self.slices:
      raise ValueError(
        f"{self.kind} has no slice of {chips} chips; use one of "
        f"{sorted(self.slices)}."
      )
    return self.slices[chips]


_TORUS_2D = {
  1: "1x1",
  4: "2x2",
  8: "2x4",
  16: "4x4",
  32: "4x8",
  64: "8x8",
  128: "8x16",
  256: "16x16",
}
_TORUS_3D = {
  1: "1x1x1",
  4: "2x2x1",
  8: "2x2x2",
  16: "2x2x4",
  32: "2x4x4",
  64: "4x4x4",
  128: "4x4x8",
  256: "4x8x8",
}

TARGETS = {
  "v5e": Target(kind="TPU v5 lite", memory_bytes=16 * 2**30, slices=_TORUS_2D),
  "v5p": Target(kind="TPU v5", memory_bytes=95 * 2**30, slices=_TORUS_3D),
  "v6e": Target(kind="TPU v6 lite", memory_bytes=32 * 2**30, slices=_TORUS_2D),
}
