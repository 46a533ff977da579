"""The table of tiles, and what a sweep tries."""

import pathlib

import pytest

from videomla_jax.costs import attention_shapes
from videomla_jax.measuring import record
from videomla_jax.measuring import suite
from videomla_jax.measuring import tile_rows
from videomla_jax.ops import device
from videomla_jax.ops.latent_attention import triton_config

RECORDS = pathlib.Path(__file__).parents[3] / "docs" / "benchmarks"
CALLS = [("forward", 128), ("forward", 192), ("gradient", 128)]
# Major number of the compute capability by the beginning of a device's name.
MAJORS = {
  "nvidia-a100": 8,
  "nvidia-h100": 9,
  "nvidia-h200": 9,
  "nvidia-b200": 10,
}


def test_rows_of_a_record_name_one_that_exists():
  for row in triton_config.TABLE:
    if row.source != triton_config.COMPUTED:
      assert row.major is not None
      assert (RECORDS / f"{row.source}.jsonl").exists()


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.jsonl")), ids=str)
def test_the_table_has_the_fastest_tiles_of_every_record(path):
  (major,) = {n for k, n in MAJORS.items() if path.name.startswith(k)}
  for call, tiles in tile_rows.fastest(record.read(path)).items():
    shape, form, direction = call
    swept = tile_rows.Call(shape=shape, form=form, direction=direction)
    width = swept.width(attention_shapes.SHAPES[shape].sizes)
    row = triton_config.row_of(direction, width, float(major))
    assert (str(row.config), row.source) == (tiles, path.stem), call


@pytest.mark.parametrize(("direction", "width"), CALLS)
def test_a_sweep_has_the_choice_of_today_among_it(direction, width):
  tried = [*triton_config.candidates(direction, width)]
  assert triton_config.row_of(direction, width, 9.0).config in tried
  assert len({str(c) for c in tried}) == len(tried)


def test_a_whole_sweep_is_short(monkeypatch):
  here = device.Device(kind="NVIDIA H100", platform="gpu", capability=9.0)
  monkeypatch.setattr(device, "current", lambda: here)
  real = suite.SIZES["real"]
  swept = tile_rows.calls("480p", "480p_framewise")
  # A row compiles two small programs, about 2.5 s on the host of a GPU.
  labels = [row.label for row in tile_rows.rows(real.shapes, swept)]
  assert 40 < len(labels) == len({*labels}) <= 48


@pytest.mark.parametrize("direction", ["forward", "gradient"])
@pytest.mark.parametrize("width", [16, 128, 192, 256, 512])
def test_every_width_has_tiles(direction, width):
  for capability in (0.0, 8.0, 9.0, 10.0):
    row = triton_config.row_of(direction, width, capability)
    assert row.direction == direction and row.width >= width
