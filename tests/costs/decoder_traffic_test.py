"""Bytes that a decoder moves, read from the text of a program."""

import pytest

from videomla_jax.costs import decoder_traffic

_PROGRAM = """\
HloModule decode

%laid_out (p0: f32[3,3,8,8]) -> bf16[8,3,3,8] {
  %p0 = f32[3,3,8,8]{3,2,1,0} parameter(0)
  %half = bf16[3,3,8,8]{3,2,1,0} convert(%p0)
  ROOT %t = bf16[8,3,3,8]{3,2,1,0} transpose(%half), dimensions={3,0,1,2}
}

%joined (p0: bf16[2,4,4,8], p1: bf16[4,4,4,8]) -> bf16[6,4,4,8] {
  %p0 = bf16[2,4,4,8]{3,2,1,0} parameter(0)
  %p1 = bf16[4,4,4,8]{3,2,1,0} parameter(1)
  %wave = bf16[4,4,4,8]{3,2,1,0} tanh(%p1)
  ROOT %both = bf16[6,4,4,8]{3,2,1,0} concatenate(%p0, %wave), dimensions={0}
}

%cut (p0: bf16[6,4,4,8]) -> bf16[2,4,4,8] {
  %p0 = bf16[6,4,4,8]{3,2,1,0} parameter(0)
  ROOT %last = bf16[2,4,4,8]{3,2,1,0} slice(%p0), slice={[4:6], [0:4], [0:4], [0:8]}
}

%again (p0: bf16[8,3,3,8]) -> bf16[8,3,3,8] {
  %p0 = bf16[8,3,3,8]{3,2,1,0} parameter(0)
  ROOT %c = bf16[8,3,3,8]{3,2,1,0} copy(%p0)
}

%added (p0: bf16[4,4,4,8]) -> bf16[4,4,4,8] {
  %p0 = bf16[4,4,4,8]{3,2,1,0} parameter(0)
  ROOT %sum = bf16[4,4,4,8]{3,2,1,0} add(%p0, %p0)
}

%body (carry: (s32[], bf16[2,4,4,8], bf16[4,4,4,8], bf16[8,3,3,8])) -> (s32[], bf16[2,4,4,8], bf16[4,4,4,8], bf16[8,3,3,8]) {
  %carry = (s32[], bf16[2,4,4,8]{3,2,1,0}, bf16[4,4,4,8]{3,2,1,0}, bf16[8,3,3,8]{3,2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %past = bf16[2,4,4,8]{3,2,1,0} get-tuple-element(%carry), index=1
  %x = bf16[4,4,4,8]{3,2,1,0} get-tuple-element(%carry), index=2
  %w = bf16[8,3,3,8]{3,2,1,0} get-tuple-element(%carry), index=3
  %frames = bf16[6,4,4,8]{3,2,1,0} fusion(%past, %x), kind=kInput, calls=%joined
  %kept = bf16[2,4,4,8]{3,2,1,0} fusion(%frames), kind=kLoop, calls=%cut
  %v = bf16[8,3,3,8]{3,2,1,0} fusion(%w), kind=kLoop, calls=%again
  %conv = (bf16[4,4,4,8]{3,2,1,0}, u8[4096]{0}) custom-call(%frames, %v), custom_call_target="__cudnn$convForward"
  %y = bf16[4,4,4,8]{3,2,1,0} get-tuple-element(%conv), index=0
  %z = bf16[4,4,4,8]{3,2,1,0} fusion(%y), kind=kLoop, calls=%added
  ROOT %next = (s32[], bf16[2,4,4,8]{3,2,1,0}, bf16[4,4,4,8]{3,2,1,0}, bf16[8,3,3,8]{3,2,1,0}) tuple(%i, %kept, %z, %w)
}

%more (carry: (s32[], bf16[2,4,4,8], bf16[4,4,4,8], bf16[8,3,3,8])) -> pred[] {
  %carry = (s32[], bf16[2,4,4,8]{3,2,1,0}, bf16[4,4,4,8]{3,2,1,0}, bf16[8,3,3,8]{3,2,1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (w: f32[3,3,8,8], past: bf16[2,4,4,8], x: bf16[4,4,4,8]) -> bf16[4,4,4,8] {
  %w.1 = f32[3,3,8,8]{3,2,1,0} parameter(0), metadata={op_name="model.decoder.conv_in.kernel"}
  %past.1 = bf16[2,4,4,8]{3,2,1,0} parameter(1), metadata={op_name="state.memory"}
  %x.1 = bf16[4,4,4,8]{3,2,1,0} parameter(2), metadata={op_name="latents"}
  %zero = s32[] constant(0)
  %ready = bf16[8,3,3,8]{3,2,1,0} fusion(%w.1), kind=kInput, calls=%laid_out
  %start = (s32[], bf16[2,4,4,8]{3,2,1,0}, bf16[4,4,4,8]{3,2,1,0}, bf16[8,3,3,8]{3,2,1,0}) tuple(%zero, %past.1, %x.1, %ready)
  %loop = (s32[], bf16[2,4,4,8]{3,2,1,0}, bf16[4,4,4,8]{3,2,1,0}, bf16[8,3,3,8]{3,2,1,0}) while(%start), condition=%more, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = bf16[4,4,4,8]{3,2,1,0} get-tuple-element(%loop), index=2
}
"""
_FRAME = 4 * 4 * 8 * 2  # bytes in bfloat16
_WEIGHTS = 3 * 3 * 8 * 8


@pytest.fixture
def found() -> dict[str, decoder_traffic.Operation]:
  return {x.name: x for x in decoder_traffic.operations(_PROGRAM)}


def test_each_operation_has_its_kind_and_runs_as_often_as_its_loop(
  found: dict[str, decoder_traffic.Operation],
) -> None:
  assert {name: (x.kind, x.times) for name, x in found.items()} == {
    "ready": ("weights", 1),
    "frames": ("concatenation", 3),
    "kept": ("slice", 3),
    "v": ("weights", 3),  # of a value that only weights went into
    "conv": ("convolution", 3),
    "z": ("other", 3),
  }


def test_bytes_are_those_read_and_written(
  found: dict[str, decoder_traffic.Operation],
) -> None:
  assert found["frames"].num_bytes == (2 + 4 + 6) * _FRAME
  assert found["kept"].num_bytes == (2 + 2) * _FRAME  # of six frames, two
  assert found["ready"].num_bytes == _WEIGHTS * (4 + 2)
  # The workspace of the library is left out.
  assert found["conv"].num_bytes == (6 + 4) * _FRAME + _WEIGHTS * 2


def test_convolutions_are_counted_and_left_out(
  found: dict[str, decoder_traffic.Operation],
) -> None:
  ops = [*found.values()]
  sums = decoder_traffic.total(ops)
  assert sums["convolution"] == (3, 3 * found["conv"].num_bytes)
  moved = decoder_traffic.beside_convolutions(ops)
  assert moved == sum(n for k, (_, n) in sums.items() if k != "convolution")
  assert moved == (3 * (12 + 4 + 8) * _FRAME + _WEIGHTS * 6 + 3 * _WEIGHTS * 4)


def test_a_loop_of_unknown_length_is_refused() -> None:
  text = _PROGRAM.replace("known_trip_count", "trips")
  with pytest.raises(ValueError, match="loop does not say how often"):
    decoder_traffic.operations(text)
