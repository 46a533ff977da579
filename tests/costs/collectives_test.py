"""Tests of reading collectives from compiled programs."""

from videomla_jax.costs import collectives

_PROGRAM = """
%gather = (bf16[8,4]{1,0}, f32[2]{0}) all-gather(%a, %b), metadata={op_name="jit(f)/x"}
%start = ((bf16[2,4]{1,0}, /*index=1*/f32[2]{0}), (bf16[16,4]{1,0}, f32[16]{0})) all-gather-start(%a, %b), dimensions={0}
%done = (bf16[16,4]{1,0}, f32[16]{0}) all-gather-done(%start)
%move = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%c)
%sum.1 = f32[] all-reduce(%d), to_apply=%add
ROOT %out = f32[] add(%sum.1, %all-reduce.7), metadata={op_name="jit(f)/all-reduce (x)"}
"""  # noqa: E501


def test_results_are_read_from_both_forms() -> None:
  gather, start, move, total = collectives.of(_PROGRAM)
  assert gather.arrays == ("bf16[8,4]", "f32[2]")
  assert gather.source == "jit(f)/x"
  assert start.arrays == ("bf16[16,4]", "f32[16]")
  assert start.sizes == (64, 16)
  assert (move.kind, move.arrays) == ("collective-permute", ("f32[6]",))
  assert total.sizes == (1,)


def test_arrays_of_one_shape_are_counted() -> None:
  one = collectives.Collective(
    kind="all-reduce", arrays=("f32[2]", "f32[2]", "s32[]"), source="here"
  )
  assert str(one) == "all-reduce 2 x f32[2], s32[] from here"
