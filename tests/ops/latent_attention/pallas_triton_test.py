"""The Pallas Triton kernels, interpreted on a CPU.

Compilation for GPUs is tested where the compiler is: tests/aot.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.latent_attention import kernel_suite as suite
from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu
from videomla_jax.ops.latent_attention import pallas_triton
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import triton_config
from videomla_jax.ops.latent_attention import types

CONFIG = triton_config.Config(rows=16, keys=16)
flash = functools.partial(pallas_triton.flash, config=CONFIG, interpret=True)
both_forms = pytest.mark.parametrize("form", ["expanded", "absorbed"])
eight_bits = pytest.mark.parametrize("stored", sorted(quantise.LARGEST))


@both_forms
@pytest.mark.parametrize("validity", suite.VALIDITY)
def test_values_and_gradients_equal_the_paper(seed, form, validity):
  args = suite.inputs(seed, validity)
  suite.check_value(flash, form, args, "float32")
  suite.check_gradient(
    flash, form, seed, args, "float32_gradient", reference.latent_attention
  )


@both_forms
@pytest.mark.parametrize("split", [(112, 16), (64, 64), (32, 96), (96, 32)])
def test_every_split_of_a_head_runs(seed, form, split):
  content, rope = split
  sizes = suite.Sizes(rope=rope, content=content, value=128, d_c=64, length=3)
  suite.check_value(flash, form, suite.inputs(seed, sizes=sizes), "float32")


@pytest.mark.parametrize("d_c", [64, 128, 192, 256, 384, 512])
def test_every_latent_of_the_ablation_runs_absorbed(seed, d_c):
  sizes = suite.Sizes(rope=32, content=96, value=128, d_c=d_c, length=3)
  args = suite.inputs(seed, sizes=sizes)
  suite.check_value(flash, "absorbed", args, "float32")
  if d_c == 256:  # the narrowest that has its gradient from XLA
    suite.check_gradient(
      flash, "absorbed", seed, args, "float32_gradient",
      reference.latent_attention,
    )  # fmt: skip


@both_forms
def test_bfloat16_stays_near_float64(seed, form):
  args = suite.inputs(seed, dtype=jnp.bfloat16)
  assert suite.check_value(flash, form, args, "bfloat16").dtype == jnp.bfloat16


@eight_bits
@pytest.mark.parametrize("validity", suite.VALIDITY)
def test_eight_bits_equal_the_paper_on_what_they_stand_for(
  seed, stored, validity
):
  args = suite.in_eight_bits(suite.inputs(seed, validity), stored)
  first = suite.check_value(flash, "absorbed", args, "float32")
  second = suite.check_value(flash, "absorbed", args, "float32")
  np.testing.assert_array_equal(first, second)


@both_forms
@eight_bits
def test_bytes_are_taken_exactly(seed, form, stored):
  args = suite.inputs(seed, dtype=jnp.bfloat16)
  args = suite.in_eight_bits(args, stored, exact=True)
  run = jax.jit(suite.latent_attention(flash, form))
  # Nothing but the scales can round, and powers of two do not.
  out, plain = run(*args), run(*suite.dequantised(args))
  np.testing.assert_array_equal(*(x.astype(jnp.float32) for x in (out, plain)))


@both_forms
@eight_bits
def test_gradients_see_dequantised_keys(seed, form, stored):
  queries, (ring, own), up = suite.in_eight_bits(suite.inputs(seed), stored)

  def gradient(function):
    def of(queries, scale, rope, own, up):
      content = ring.content._replace(scale=scale.astype(jnp.bfloat16))
      seen = ring._replace(content=content, rope=rope)
      return jnp.sum(jnp.square(function(queries, (seen, own), up)))

    scale = ring.content.scale.astype(jnp.float32)
    grad = jax.grad(of, argnums=(0, 1, 2, 4))
    return jax.jit(grad)(queries, scale, ring.rope, own, up)

  ours = gradient(suite.latent_attention(flash, form))
  theirs = gradient(reference.latent_attention)
  for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
    # The gradient of a scale is rounded to bfloat16, as the scale is.
    kind = "bfloat16" if i == 1 else "float32_gradient"
    jax.tree.map(
      functools.partial(suite.tolerances.assert_close, kind=kind), a, b
    )


@both_forms
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_in_half_precision_stay_near_float32(seed, form, dtype):
  args = suite.inputs(seed, dtype=dtype)
  suite.check_gradient(
    flash, form, seed, args, "bfloat16", reference.latent_attention
  )


@both_forms
def test_one_key_and_one_query(seed, form):
  sizes = suite.Sizes(length=1, own=1)
  args = suite.inputs(seed, "empty", sizes)
  suite.check_value(flash, form, args, "float32")
  suite.check_value(flash, form, (args[0], args[1][1:], args[2]), "float32")


@both_forms
def test_two_runs_are_bit_equal(seed, form):
  args = suite.inputs(seed)
  run = suite.with_gradient(suite.latent_attention(flash, form))
  cotangent = jnp.ones((suite.B, 21, suite.N, 64))
  first, second = run(*args, cotangent), run(*args, cotangent)
  jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("validity", ["holes", "one row empty"])
def test_attention_without_positions_equals_plain_softmax(seed, validity):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  keys, heads = 4 * suite.P, suite.N
  sizes = ((21, heads, 48), (keys, heads, 48), (keys, heads, 32))
  arrays = tuple(draw(suite.B, *size) for size in sizes)
  # One more validity block at the end, so that every row of the batch sees a key.
  valid = jnp.asarray([[*row, 1] for row in suite.VALIDITY[validity]], bool)

  def ours(query, key, value):
    segment = types.KeyValue(key, key[:, :, 0, :0], value, valid)
    queries = suite.types.Queries(query, query[..., :0])
    return flash(queries, (segment,), scale=0.3)

  def plain(query, key, value):
    seen = jnp.repeat(valid, suite.P, axis=1)
    return reference.attention(query, key, value, seen, scale=0.3)

  cotangent = draw(suite.B, 21, heads, 32)
  results = []
  for function in (ours, plain):
    out, pull = jax.vjp(jax.jit(function), *arrays)
    results.append((out, *pull(cotangent)))
  for a, b in zip(*results, strict=True):
    suite.tolerances.assert_close(a, b, "float32_gradient")


def test_parts_add_up_to_the_width():
  assert triton_config.parts(192) == ((0, 128), (128, 64))
  assert triton_config.parts(112) == ((0, 64), (64, 32), (96, 16))
  with pytest.raises(NotImplementedError, match="width 24 is no sum"):
    triton_config.parts(24)


def test_blackwell_kernel_takes_this_gradient(seed):
  # Its own forward pass needs another interpreter; with a gradient, Triton's
  # forward pass runs, so this is the whole way.
  sizes = suite.Sizes(own=24, length=5)
  args = suite.inputs(seed, "empty", sizes, jnp.bfloat16)
  args = (args[0], args[1][1:], args[2])
  theirs = functools.partial(pallas_mosaic_gpu.flash, interpret=True)
  ours = functools.partial(pallas_triton.flash, interpret=True)
  cotangent = jnp.ones((suite.B, 5, suite.N, 64), jnp.bfloat16)
  runs = [
    suite.with_gradient(suite.latent_attention(f, "expanded"))(*args, cotangent)
    for f in (theirs, ours)
  ]
  jax.tree.map(np.testing.assert_array_equal, *runs)


def _segments(seed):
  queries, keys, up = suite.inputs(seed)
  made = []
  suite.latent_attention(
    lambda q, s, scale: made.append((q, s)) or q.content, "expanded"
  )(queries, keys, up)
  return made[0]


@pytest.mark.parametrize("order", [1, -1])
def test_segments_must_agree_on_values(seed, order):
  queries, (ring, own) = _segments(seed)
  mixed = (ring._replace(value=None), own)[::order]
  with pytest.raises(NotImplementedError, match="pallas_triton: some segments"):
    flash(queries, mixed, scale=1.0)
  half = lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x
  queries, mixed = jax.tree.map(half, (queries, mixed))
  with pytest.raises(NotImplementedError, match="gpu: some segments"):
    pallas_mosaic_gpu.flash(queries, mixed, scale=1.0)


def test_blackwell_kernel_leaves_bytes_to_triton(seed):
  args = suite.inputs(seed, dtype=jnp.bfloat16)
  args = suite.in_eight_bits(args, "int8")
  with pytest.raises(NotImplementedError, match="gpu: does not dequantise"):
    suite.latent_attention(pallas_mosaic_gpu.flash, "absorbed")(*args)


def test_what_a_gpu_cannot_do_well_is_refused(seed):
  queries, segments = _segments(seed)
  with pytest.raises(NotImplementedError, match="float32 spills"):
    pallas_triton.flash(queries, segments, scale=1.0)
  odd = triton_config.Config(rows=48, keys=16)
  for tiles in ("config", "gradient_config"):
    with pytest.raises(NotImplementedError, match="48 rows"):
      pallas_triton.flash(
        queries, segments, scale=1.0, interpret=True, **{tiles: odd}
      )


def test_tiles_of_the_gradient_change_its_work_and_not_its_value(seed):
  args = suite.inputs(seed)

  def gradient(tiles):
    attend = functools.partial(flash, gradient_config=tiles)
    whole = suite.latent_attention(attend, "expanded")
    of = jax.grad(lambda args: jnp.sum(jnp.sin(whole(*args))), allow_int=True)
    found = jax.make_jaxpr(of)(args)
    values = [
      x for x in jax.tree.leaves(jax.jit(of)(args)) if x.dtype == jnp.float32
    ]
    return str(found), values

  small, values = gradient(CONFIG)
  large, others = gradient(triton_config.Config(rows=32, keys=32))
  assert small != large
  for a, b in zip(values, others, strict=True):
    suite.tolerances.assert_close(a, b, "float32_gradient")
