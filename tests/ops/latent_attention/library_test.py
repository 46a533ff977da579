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


def test_valid_frames_come_first_and_are_counted(seed):
  _, keys, _ = _inputs(seed)
  ordered, lengths = library.valid_first(keys)
  assert lengths.tolist() == [4 * P, 2 * P]
  joined = types.join(keys)
  for b in range(B):
    seen = np.asarray(joined.valid[b])
    np.testing.assert_array_equal(
      ordered.content[b, : lengths[b]], joined.content[b, seen]
    )


def test_what_cannot_run_says_so(seed):
  queries, keys, up = _inputs(seed)
  run = functools.partial(library.latent_attention, name="x", attention=_xla)
  with pytest.raises(NotImplementedError, match="x: has no absorbed form"):
    run(queries, keys, up, form="absorbed")
  ring = keys[0]._replace(valid=jnp.ones((B, 1), bool))
  with pytest.raises(
    NotImplementedError, match=r"validity blocks of \[4, 12\] keys"
  ):
    run(queries, (ring, keys[1]), up, form="expanded")
