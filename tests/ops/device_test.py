"""The device that kernels are chosen for."""

import jax
import pytest

from videomla_jax.ops import device


def _mesh(kind, platform):
  return jax.sharding.AbstractMesh(
    (1,),
    ("data",),
    axis_types=jax.sharding.AxisType.Auto,
    abstract_device=jax.sharding.AbstractDevice(kind, 1, platform),
  )


def test_without_a_mesh_it_is_the_local_one():
  here = device.current()
  assert here.kind == jax.local_devices()[0].device_kind
  assert here.capability == 0
  assert here.intensity == float("inf")


@pytest.mark.parametrize(
  ("kind", "capability"), [("NVIDIA B200", 10.0), ("NVIDIA H200", 9.0)]
)
def test_a_mesh_names_devices_that_are_not_here(kind, capability):
  with jax.sharding.use_abstract_mesh(_mesh(kind, "cuda")):
    found = device.current()
  assert (found.kind, found.platform) == (kind, "gpu")
  assert found.capability == capability
  # Data sheets: about 146 multiply-adds per byte, both generations.
  assert 140 < found.intensity < 150


@pytest.mark.parametrize(
  ("kind", "intensity"),
  [("TPU v5 lite", 120), ("TPU v5", 83), ("TPU v6 lite", 280)],
)
def test_a_tpu_has_its_own_data_sheet(kind, intensity):
  with jax.sharding.use_abstract_mesh(_mesh(kind, "tpu")):
    found = device.current()
  assert (found.platform, found.capability) == ("tpu", 0)
  assert found.intensity == pytest.approx(intensity, rel=0.01)


def test_a_device_that_is_here_tells_its_own_capability(monkeypatch):
  class Local:
    device_kind, platform, compute_capability = "NVIDIA L40S", "gpu", "8.9"

  monkeypatch.setattr(jax, "local_devices", lambda: [Local()])
  with jax.sharding.use_abstract_mesh(_mesh("NVIDIA L40S", "cuda")):
    assert device.current().capability == 8.9


def test_an_unknown_gpu_has_no_kernels():
  with jax.sharding.use_abstract_mesh(_mesh("NVIDIA X1", "cuda")):
    assert device.current().capability == 0
