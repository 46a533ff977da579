"""Bytes that a layer moves, read from the text of a program."""

import textwrap

import pytest

from videomla_jax.costs import layer_traffic

_PROGRAM = """\
HloModule step

%sliced (p0: bf16[4,64,32], p1: s32[]) -> bf16[1,64,32] {
  %p0 = bf16[4,64,32]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %cut = bf16[1,64,32]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,64,32}
}

%in_place (p0: bf16[4,64,32], p1: s32[], p2: bf16[64,16]) -> (bf16[64,32], s8[4096]) {
  %p0 = bf16[4,64,32]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = bf16[64,16]{1,0} parameter(2)
  %cut = bf16[1,64,32]{2,1,0} dynamic-slice(%p0, %p1, %p1, %p1), dynamic_slice_sizes={1,64,32}
  ROOT %product = (bf16[64,32]{1,0}, s8[4096]{0}) custom-call(%p2, %cut), custom_call_target="__cublas$lt$matmul"
}

%added (p0: f32[64,32], p1: bf16[64,32]) -> f32[64,32] {
  %p0 = f32[64,32]{1,0} parameter(0)
  %p1 = bf16[64,32]{1,0} parameter(1)
  %wide = f32[64,32]{1,0} convert(%p1)
  ROOT %sum = f32[64,32]{1,0} add(%p0, %wide)
}

%stored (p0: bf16[4,64,32], p1: bf16[1,64,32], p2: s32[]) -> bf16[4,64,32] {
  %p0 = bf16[4,64,32]{2,1,0} parameter(0)
  %p1 = bf16[1,64,32]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %new = bf16[4,64,32]{2,1,0} dynamic-update-slice(%p0, %p1, %p2, %p2, %p2)
}

%joined (p0: bf16[64,8], p1: bf16[64,8]) -> bf16[64,16] {
  %p0 = bf16[64,8]{1,0} parameter(0)
  %p1 = bf16[64,8]{1,0} parameter(1)
  ROOT %both = bf16[64,16]{1,0} concatenate(%p0, %p1), dimensions={1}
}

%body (carry: (s32[], f32[64,32], bf16[4,64,32])) -> (s32[], f32[64,32], bf16[4,64,32]) {
  %carry = (s32[], f32[64,32]{1,0}, bf16[4,64,32]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = f32[64,32]{1,0} get-tuple-element(%carry), index=1
  %stack = bf16[4,64,32]{2,1,0} get-tuple-element(%carry), index=2
  %begun = ((bf16[4,64,32]{2,1,0}, s32[]), bf16[1,64,32]{2,1,0}, u32[]) fusion-start(%stack, %i), kind=kLoop, calls=%sliced
  %w = bf16[1,64,32]{2,1,0} fusion-done(%begun)
  %attention = (bf16[64,32]{1,0}, u8[0]{0}) custom-call(%w), custom_call_target="__cudnn$fmhaSoftmax"
  %a = bf16[64,32]{1,0} get-tuple-element(%attention), index=0
  %half = bf16[64,8]{1,0} bitcast(%a)
  %k = bf16[64,16]{1,0} fusion(%half, %half), kind=kInput, calls=%joined
  %q = (bf16[64,32]{1,0}, s8[4096]{0}) fusion(%stack, %i, %k), kind=kCustom, calls=%in_place
  %r = bf16[64,32]{1,0} get-tuple-element(%q), index=0
  %y = f32[64,32]{1,0} fusion(%x, %r), kind=kLoop, calls=%added
  %s = bf16[4,64,32]{2,1,0} fusion(%stack, %w, %i), kind=kLoop, calls=%stored
  ROOT %next = (s32[], f32[64,32]{1,0}, bf16[4,64,32]{2,1,0}) tuple(%i, %y, %s)
}

%more (carry: (s32[], f32[64,32], bf16[4,64,32])) -> pred[] {
  %carry = (s32[], f32[64,32]{1,0}, bf16[4,64,32]{2,1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: (s32[], f32[64,32], bf16[4,64,32])) -> (s32[], f32[64,32], bf16[4,64,32]) {
  %x = (s32[], f32[64,32]{1,0}, bf16[4,64,32]{2,1,0}) parameter(0)
  ROOT %loop = (s32[], f32[64,32]{1,0}, bf16[4,64,32]{2,1,0}) while(%x), condition=%more, body=%body
}
"""
_LAYER = 64 * 32 * 2  # bytes of one layer of the stack, in bfloat16


@pytest.fixture
def loop() -> dict[str, layer_traffic.Operation]:
  (found,) = layer_traffic.layer_loops(textwrap.dedent(_PROGRAM))
  return {x.name: x for x in found}


def test_each_operation_has_its_kind(
  loop: dict[str, layer_traffic.Operation],
) -> None:
  assert {name: x.kind for name, x in loop.items()} == {
    "begun": "weights",
    "attention": "attention",
    "k": "concatenation",
    "q": "product",
    "y": "other",
    "s": "other",
  }


def test_of_a_stack_one_layer_is_read_and_written(
  loop: dict[str, layer_traffic.Operation],
) -> None:
  index = 4
  assert loop["begun"].num_bytes == 2 * _LAYER + index
  # An update in place reads what is new, and writes as much.
  assert loop["s"].num_bytes == 2 * _LAYER + index


def test_workspaces_are_no_traffic(
  loop: dict[str, layer_traffic.Operation],
) -> None:
  assert loop["q"].num_bytes == _LAYER + 4 + 64 * 16 * 2 + _LAYER


def test_products_and_attention_are_left_out(
  loop: dict[str, layer_traffic.Operation],
) -> None:
  joined, added = 3 * 64 * 16 * 2 - 64 * 16 * 2, 5 * _LAYER
  expected = joined + added + 2 * (2 * _LAYER + 4)
  assert layer_traffic.beside_products([*loop.values()]) == expected


def test_what_is_large_is_listed_with_its_bytes(
  loop: dict[str, layer_traffic.Operation],
) -> None:
  whole = [*loop.values()]
  copies = layer_traffic.large(whole, "weights", least=_LAYER)
  assert copies == {(64, 32): 2 * _LAYER + 4}
  assert layer_traffic.large(whole, "weights", least=2**20) == {}
  joined = layer_traffic.large(whole, "concatenation", least=0)
  assert joined == {(64, 16): 2 * 64 * 16 * 2}


@pytest.mark.parametrize(
  ("change", "kind"),
  [
    # Whatever is done to a weight on its way, it is still copied.
    (("ROOT %cut", "%cut"), "weights"),
    # A cache has axes of rows, frames and tokens as well.
    (("[4,64,32]", "[4,2,4,8,32]"), "entries"),
  ],
)
def test_weights_and_entries_are_told_apart(
  change: tuple[str, str], kind: str
) -> None:
  text = _PROGRAM.replace(*change)
  if kind == "weights":
    end = "dynamic_slice_sizes={1,64,32}\n"
    turned = "  ROOT %turned = f32[32,64]{1,0} transpose(%cut)\n"
    text = text.replace(end, end + turned, 1)
  (loop,) = layer_traffic.layer_loops(text)
  assert {x.name: x.kind for x in loop}["begun"] == kind


_APART = """\
HloModule step

%joined (p0: bf16[64,8], p1: bf16[64,24]) -> bf16[64,32] {
  %p0 = bf16[64,8]{1,0} parameter(0)
  %p1 = bf16[64,24]{1,0} parameter(1)
  ROOT %both = bf16[64,32]{1,0} concatenate(%p0, %p1), dimensions={1}
}

%wide (p0: bf16[4,1,8,32]) -> f32[1,1,8,32] {
  %p0 = bf16[4,1,8,32]{3,2,1,0} parameter(0)
  %all = f32[4,1,8,32]{3,2,1,0} convert(%p0)
  ROOT %one = f32[1,1,8,32]{3,2,1,0} slice(%all), slice={[2:3], [0:1], [0:8], [0:32]}
}

%added (p0: f32[64,32], p1: bf16[64,8]) -> f32[64,32] {
  %p0 = f32[64,32]{1,0} parameter(0)
  %p1 = bf16[64,8]{1,0} parameter(1)
  ROOT %sum = f32[64,32]{1,0} tanh(%p0)
}

%body (carry: (f32[64,32], bf16[64,8], bf16[64,24], bf16[4,1,8,32])) -> (f32[64,32], bf16[64,8], bf16[64,24], bf16[4,1,8,32]) {
  %carry = (f32[64,32]{1,0}, bf16[64,8]{1,0}, bf16[64,24]{1,0}, bf16[4,1,8,32]{3,2,1,0}) parameter(0)
  %x = f32[64,32]{1,0} get-tuple-element(%carry), index=0
  %a = bf16[64,8]{1,0} get-tuple-element(%carry), index=1
  %b = bf16[64,24]{1,0} get-tuple-element(%carry), index=2
  %cache = bf16[4,1,8,32]{3,2,1,0} get-tuple-element(%carry), index=3
  %turned = bf16[8,64]{0,1} bitcast(%a)
  %w = bf16[64,32]{1,0} fusion(%turned, %b), kind=kInput, calls=%joined
  %past = f32[1,1,8,32]{3,2,1,0} fusion(%cache), kind=kLoop, calls=%wide
  %attention = (bf16[64,32]{1,0}, u8[0]{0}) custom-call(%w, %past), custom_call_target="__cudnn$fmhaSoftmax"
  %y = f32[64,32]{1,0} fusion(%x, %a), kind=kLoop, calls=%added
  ROOT %next = (f32[64,32]{1,0}, bf16[64,8]{1,0}, bf16[64,24]{1,0}, bf16[4,1,8,32]{3,2,1,0}) tuple(%y, %a, %b, %cache)
}

%more (carry: (f32[64,32], bf16[64,8], bf16[64,24], bf16[4,1,8,32])) -> pred[] {
  %carry = (f32[64,32]{1,0}, bf16[64,8]{1,0}, bf16[64,24]{1,0}, bf16[4,1,8,32]{3,2,1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (a: bf16[64,8], b: bf16[64,24], cache: bf16[4,1,8,32]) -> f32[64,32] {
  %a.1 = bf16[64,8]{1,0} parameter(0)
  %b.1 = bf16[64,24]{1,0} parameter(1)
  %cache.1 = bf16[4,1,8,32]{3,2,1,0} parameter(2)
  %noise = f32[64,32]{1,0} constant({...})
  %start = (f32[64,32]{1,0}, bf16[64,8]{1,0}, bf16[64,24]{1,0}, bf16[4,1,8,32]{3,2,1,0}) tuple(%noise, %a.1, %b.1, %cache.1)
  %loop = (f32[64,32]{1,0}, bf16[64,8]{1,0}, bf16[64,24]{1,0}, bf16[4,1,8,32]{3,2,1,0}) while(%start), condition=%more, body=%body
  ROOT %out = f32[64,32]{1,0} get-tuple-element(%loop), index=0
}
"""


def test_where_layers_lie_apart_weights_are_arguments() -> None:
  (loop,) = layer_traffic.layer_loops(textwrap.dedent(_APART), apart=True)
  found = {x.name: (x.kind, x.num_bytes) for x in loop}
  cut = 8 * 32
  assert found == {
    "w": ("weights", 2 * 64 * 32 * 2),
    # Of the cache one layer is read, as it is stored, and widened.
    "past": ("entries", cut * 2 + cut * 4),
    "attention": ("attention", 2 * 64 * 32 * 2 + cut * 4),
    "y": ("other", 2 * 64 * 32 * 4 + 64 * 8 * 2),
  }
