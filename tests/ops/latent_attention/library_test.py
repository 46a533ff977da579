"""Other libraries' attention: valid frames first, the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from videomla_jax.ops.latent_attention import library
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import types

B, L, N, C, R, DN, D, P = 2, 5, 3, 7, 4, 6, 10, 4
VALID = np.asarray([[True, False, True], [False, False, False]])


def _inputs(seed):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  ring = types.Keys(draw(B, 3 * P, C), draw(B, 3 * P, R), jnp.asarray(VALID))
  own = types.Keys(draw(B, 2 * P, C), draw(B, 2 * P, R), jnp.ones((B, 2), bool))
  queries = types.Queries(draw(B, L, N, DN), draw(B, L, N, R))
  up = types.UpProjections(draw(C, N, DN), draw(C, N, D))
  return queries, (ring, own), up


def _xla(*args, **kwargs):
  # JAX's XLA path wants values as wide as keys; cuDNN's does not.
  query, key, value = args
  width = value.shape[-1]
  pad = [(0, 0)] * 3 + [(0, width - query.shape[-1])]
  query, key = jnp.pad(query, pad), jnp.pad(key, pad)
  return jax.nn.dot_product_attention(
    query, key, value, implementation="xla", **kwargs
  )


def test_values_and_gradients_equal_the_reference(seed):
  inputs = _inputs(seed)
  run = functools.partial(
    library.latent_attention, form="expanded", name="xla", attention=_xla
  )
  out, pull = jax.vjp(run, *inputs)
  expected, expected_pull = jax.vjp(reference.latent_attention, *inputs)
  tolerances.assert_close(out, expected)
  for ours, theirs in zip(
    jax.tree.leaves(pull(out)), jax.tree.leaves(expected_pull(out))
  ):
    if ours.dtype == jnp.float32:
      tolerances.assert_close(ours, theirs, "float32_gradient")


def test_valid_blocks_come_first_and_are_counted(seed):
  _, keys, _ = _inputs(seed)
  rows, valid = library.joined(keys)
  (moved,), lengths = library.valid_first([rows], valid)
  assert lengths.tolist() == [4 * P, 2 * P]
  joined = types.join(keys)
  for b in range(B):
    seen = np.asarray(joined.valid[b])
    for part, expected in (
      (moved[..., :C], joined.content),
      (moved[..., C:], joined.rope),
    ):
      np.testing.assert_array_equal(part[b, : lengths[b]], expected[b, seen])


def test_segments_with_blocks_of_different_sizes_are_joined(seed):
  queries, (ring, own), up = _inputs(seed)
  own = own._replace(valid=own.valid[:, :1])  # one block of two frames
  args = (queries, (ring, own), up)
  out = library.latent_attention(
    *args, form="expanded", name="xla", attention=_xla
  )
  tolerances.assert_close(out, reference.latent_attention(*args))


def test_gradient_of_moved_blocks_is_that_of_a_gather(seed):
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.standard_normal((B, 5, 3)), jnp.float32)
  order = jnp.asarray(np.stack([rng.permutation(5) for _ in range(B)]))
  plain = lambda x: jnp.take_along_axis(x, order[..., None], axis=1)
  out, pull = jax.vjp(lambda x: library.permuted(x, order), x)
  expected, plain_pull = jax.vjp(plain, x)
  np.testing.assert_array_equal(out, expected)
  np.testing.assert_array_equal(pull(out)[0], plain_pull(out)[0])
  # No blocks are added up, which takes several steps for each number on a GPU.
  text = jax.jit(lambda d: pull(d)[0]).lower(out).as_text()
  assert "gather" in text and "scatter" not in text


def test_products_write_positions_behind_the_content_exactly(seed):
  _, keys, up = jax.tree.map(
    lambda x: x if x.dtype == bool else x.astype(jnp.bfloat16), _inputs(seed)
  )
  rows, _ = library.joined(keys)
  key, value = (
    jnp.einsum("BSc,cNd->BSNd", rows, weight)
    for weight in library.with_positions(up, rope=R)
  )
  joined = types.join(keys)
  rope = jnp.broadcast_to(joined.rope[:, :, None], (*key.shape[:3], R))
  np.testing.assert_array_equal(key[..., DN:], rope)
  for found, weight in ((key[..., :DN], up.key), (value, up.value)):
    expected = jnp.einsum("BSc,cNd->BSNd", joined.content, weight)
    np.testing.assert_array_equal(found, expected)


def test_no_key_is_copied_behind_its_content(seed):
  queries, keys, up = _inputs(seed)
  opaque = lambda query, key, value, **kwargs: query @ jnp.zeros((DN + R, D))
  run = functools.partial(
    library.latent_attention, form="expanded", name="x", attention=opaque
  )
  written = {
    eqn.outvars[0].aval.shape
    for eqn in jax.make_jaxpr(run)(queries, keys, up).eqns
    if eqn.primitive.name == "concatenate"
  }
  assert (B, L, N, DN + R) in written  # the queries, where they are rotated
  assert not {s for s in written if s[:3] == (B, 5 * P, N)}


@pytest.mark.parametrize("holes", [True, False])
def test_dense_values_and_gradients_equal_the_reference(seed, holes):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  args = draw(B, L, N, D), draw(B, 3 * P, N, D), draw(B, 3 * P, N, D)
  # Every row of the batch needs a valid block.
  valid = jnp.asarray([[True, False, True], [False, False, True]])
  run = functools.partial(
    library.dense_attention,
    valid=valid if holes else None,
    scale=0.3,
    attention=_xla,
  )
  seen = jnp.repeat(valid | (not holes), P, axis=1)
  plain = lambda *args: reference.attention(*args, seen, scale=0.3)
  out, pull = jax.vjp(run, *args)
  expected, expected_pull = jax.vjp(plain, *args)
  tolerances.assert_close(out, expected)
  for ours, theirs in zip(pull(out), expected_pull(out), strict=True):
    tolerances.assert_close(ours, theirs, "float32_gradient")


def test_libraries_have_no_absorbed_form(seed):
  queries, keys, up = _inputs(seed)
  run = functools.partial(library.latent_attention, name="x", attention=_xla)
  with pytest.raises(NotImplementedError, match="x: has no absorbed form"):
    run(queries, keys, up, form="absorbed")
