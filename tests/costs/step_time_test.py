"""What a program does, counted in its text, and the time that follows."""

import pytest

from videomla_jax.costs import step_time
from videomla_jax.ops import device

TEXT = """HloModule jit_f, entry_computation_layout={()->f32[]}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %y = f32[8]{0} negate(%x)
  ROOT %t = (s32[], f32[8]) tuple(%i, %y)
}

%large (a: f32[16]) -> f32[16] {
  %a = f32[16]{0} parameter(0)
  ROOT %b = f32[16]{0} negate(%a)
}

%small (a2: f32[16]) -> f32[16] {
  %a2 = f32[16]{0} parameter(0)
  ROOT %c = f32[16]{0} bitcast(%a2)
}

ENTRY %main (z: f32[8]) -> f32[8] {
  %z = f32[8]{0} parameter(0)
  %w = f32[8]{0} add(%z, %z)
  %in = (s32[], f32[8]) tuple(%w, %w)
  %l = (s32[], f32[8]) while(%in), condition=%cond, body=%body, TRIPS
  %q = s32[] parameter(1)
  %v = f32[16]{0} parameter(2)
  %u = f32[16]{0} conditional(%q, %v, %v), branch_computations={%small, %large}
  ROOT %r = f32[8]{0} get-tuple-element(%l), index=1
}
"""
TRIPS = 'backend_config={"known_trip_count":{"n":"5"}}'


def test_loops_count_as_often_as_they_run_and_branches_once() -> None:
  work = step_time.of_program(TEXT.replace("TRIPS", TRIPS), flops=7.0)
  # One addition of 96 bytes, five negations of 64, one of 128.
  assert (work.kernels, work.num_bytes, work.flops) == (
    7,
    3 * 32 + 5 * 64 + 128,
    7.0,
  )


def test_a_loop_of_unknown_length_runs_as_often_as_is_said() -> None:
  text = TEXT.replace("TRIPS", "x=1")
  work = step_time.of_program(text, flops=0.0, trips=2.5)
  assert work.num_bytes == 3 * 32 + 2.5 * 64 + 128


def test_each_kind_of_work_takes_its_time() -> None:
  peak = device.Peak(bf16_flops=4e12, bandwidth=1e12)
  work = step_time.Work(kernels=1000, num_bytes=600_000_000, flops=1e9)
  assert work.seconds(peak) == pytest.approx(
    {"launches": 3e-3, "memory": 1e-3, "products": 1e-3}
  )
