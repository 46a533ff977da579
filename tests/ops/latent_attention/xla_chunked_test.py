"""Attention over blocks of keys in XLA: one suite over blocks and forms."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from tests.ops.latent_attention import small_call
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import types
from videomla_jax.ops.latent_attention import xla_chunked

B, L, S, N, _, R, DN, D = small_call.SIZES
# 22 keys: blocks of 8 leave a tail of 6, of 11 none; 512 is one block.
CASES = {
  f"{form}-{block}": functools.partial(
    xla_chunked.latent_attention, form=form, block=block
  )
  for form in ("expanded", "absorbed")
  for block in (8, 11, 512)
}
suite = pytest.mark.parametrize("case", CASES)


@functools.cache
def _value_and_gradient(function: Callable):
  def run(queries, keys, up, cotangent):
    def of(queries, content, rope, up):
      seen = keys._replace(content=content, rope=rope)
      return function(queries, (seen,), up)

    out, pull = jax.vjp(of, queries, keys.content, keys.rope, up)
    return out, pull(cotangent.astype(out.dtype))

  return jax.jit(run)


def _run(function, inputs):
  return jax.tree.map(np.asarray, _value_and_gradient(function)(*inputs))


@suite
@pytest.mark.parametrize("validity", small_call.VALIDITY)
def test_value_and_gradient_equal_the_reference(seed, case, validity):
  inputs = small_call.inputs(seed, validity)
  out, gradient = _run(CASES[case], inputs)
  expected, expected_gradient = _run(reference.latent_attention, inputs)
  tolerances.assert_close(out, expected)
  # The gradient of scores vanishes with a single key, up to its rounding.
  scale = max(np.abs(g).max() for g in jax.tree.leaves(gradient))
  for ours, theirs in zip(
    jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient)
  ):
    if validity == "single" and np.abs(theirs).max() < 1e-5 * scale:
      assert np.abs(ours).max() < 1e-5 * scale
    else:
      tolerances.assert_close(ours, theirs)


@suite
def test_segments_of_frames_equal_one_segment_of_keys(seed, case):
  queries, keys, up, _ = small_call.inputs(seed)
  frame = jnp.asarray([[True, False, True], [False, True, True]])
  ring = jax.tree.map(lambda x: x[:, :15], keys)._replace(valid=frame)
  own = jax.tree.map(lambda x: x[:, 15:], keys)
  own = own._replace(valid=jnp.ones((B, 1), bool))
  whole = keys._replace(
    valid=jnp.concatenate([jnp.repeat(frame, 5, 1), jnp.ones((B, 7), bool)], 1)
  )
  out = jax.jit(CASES[case])(queries, (ring, own), up)
  expected = jax.jit(CASES[case])(queries, (whole,), up)
  tolerances.assert_close(out, expected)


@suite
def test_two_runs_are_bit_equal(seed, case):
  inputs = small_call.inputs(seed)
  first, second = _run(CASES[case], inputs), _run(CASES[case], inputs)
  jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("case", [*CASES, "reference"])
def test_garbage_in_empty_slots_has_no_effect(seed, case):
  function = CASES.get(case, reference.latent_attention)
  queries, keys, up, cotangent = small_call.inputs(seed)
  hole = ~keys.valid[..., None]
  dirty = keys._replace(
    content=jnp.where(hole, 1e10, keys.content),
    rope=jnp.where(hole, -1e10, keys.rope),
  )
  clean = _run(function, (queries, keys, up, cotangent))
  garbage = _run(function, (queries, dirty, up, cotangent))
  jax.tree.map(np.testing.assert_array_equal, clean, garbage)


@pytest.mark.parametrize("case", [*CASES, "reference"])
def test_gradient_of_empty_slots_is_exactly_zero(seed, case):
  function = CASES.get(case, reference.latent_attention)
  inputs = small_call.inputs(seed)
  _, (_, content, rope, _) = _run(function, inputs)
  valid = np.asarray(inputs[1].valid)
  for gradient in (np.asarray(content), np.asarray(rope)):
    assert (gradient[~valid] == 0).all()
    assert (gradient[valid] != 0).any(-1).all()


@suite
def test_bfloat16_stays_near_float32(seed, case):
  queries, keys, up, _ = small_call.inputs(seed)
  halve = lambda x: x.astype(jnp.bfloat16) if x.dtype != bool else x
  half = jax.tree.map(halve, (queries, (keys,), up))
  back = lambda x: x.astype(jnp.float32) if x.dtype != bool else x
  # Rounding of inputs is no error of the implementation.
  expected = jax.jit(reference.latent_attention)(*jax.tree.map(back, half))
  out = jax.jit(CASES[case])(*half)
  assert out.dtype == jnp.bfloat16
  tolerances.assert_close(out, expected, "bfloat16")


@pytest.mark.parametrize("validity", small_call.VALIDITY)
@pytest.mark.parametrize("block", [8, 11, 512])
def test_dense_blocks_equal_plain_softmax(seed, validity, block):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  args = draw(B, L, N, 6), draw(B, S, N, 6), draw(B, S, N, D)
  valid = jnp.asarray(small_call.validity_of(validity, rng))
  chunked = functools.partial(xla_chunked.attention, scale=0.4, block=block)
  plain = functools.partial(reference.attention, scale=0.4)
  out, expected = (jax.jit(f)(*args, valid) for f in (chunked, plain))
  tolerances.assert_close(out, expected)


def _peak(function, size):
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  queries = types.Queries(shape(1, size, 2, 8), shape(1, size, 2, 4))
  keys = types.Keys(
    shape(1, size, 8),
    shape(1, size, 4),
    jax.ShapeDtypeStruct((1, size), bool),
  )
  up = types.UpProjections(shape(8, 2, 8), shape(8, 2, 8))
  run = _value_and_gradient(function)
  compiled = run.lower(queries, keys, up, shape(1, size, 2, 8)).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_memory_is_linear_in_queries_plus_keys(form):
  # 4,096 x 4,096 scores alone would take 16 times those of 1,024 x 1,024.
  run = functools.partial(xla_chunked.latent_attention, form=form)
  small, large = (_peak(run, size) for size in (1024, 4096))
  assert large <= 4.4 * small
  assert large < 4 * 4096 * 4096 * 2


# Of L = 5 queries, and of N = 3 heads.
@pytest.mark.parametrize(("rows", "groups"), [(1, 2), (2, 1), (3, 4)])
def test_one_head_after_the_other_changes_nothing(
  seed, rows, groups, monkeypatch
):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  args = draw(B, L, N, 6), draw(B, S, N, 6), draw(B, S, N, 12)
  holes = (rng.random((B, S)) < 0.5) | (np.arange(S) == 21)
  valid = jnp.asarray(holes)
  pull = draw(B, L, N, 12)

  def run(*args):
    attend = lambda *args: xla_chunked.attention(
      *args, valid, scale=0.4, block=8
    )
    out, back = jax.vjp(attend, *args)
    return out, back(pull)

  expected = jax.jit(run)(*args)
  monkeypatch.setattr(xla_chunked, "CPU_ROWS", rows)
  monkeypatch.setattr(xla_chunked, "CPU_LEAST", 1)
  monkeypatch.setattr(xla_chunked, "CPU_GROUPS", groups)
  program = jax.jit(lambda *args: run(*args))
  assert xla_chunked._exceeds_cache(jnp.zeros((B, N, L, 6)))
  for ours, theirs in zip(
    jax.tree.leaves(program(*args)), jax.tree.leaves(expected), strict=True
  ):
    tolerances.assert_close(ours, theirs)
