"""Tests of blocks of keys in XLA: cutting the work changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from videomla_jax.ops.latent_attention import xla_chunked

B, L, S, N, D = 2, 5, 22, 3, 6


@pytest.mark.parametrize("rows", [1, 2, 3])  # of L = 5 queries
def test_one_head_after_the_other_changes_nothing(seed, rows, monkeypatch):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  args = draw(B, L, N, D), draw(B, S, N, D), draw(B, S, N, 2 * D)
  holes = (rng.random((B, S)) < 0.5) | (np.arange(S) == 21)
  valid = jnp.asarray(holes)
  pull = draw(B, L, N, 2 * D)

  def run(*args):
    attend = lambda *args: xla_chunked.attention(
      *args, valid, scale=0.4, block=8
    )
    out, back = jax.vjp(attend, *args)
    return out, back(pull)

  expected = jax.jit(run)(*args)
  monkeypatch.setattr(xla_chunked, "CPU_ROWS", rows)
  monkeypatch.setattr(xla_chunked, "CPU_LEAST", 1)
  program = jax.jit(lambda *args: run(*args))
  assert xla_chunked._fills_cache(jnp.zeros((B, N, L, D)))
  for ours, theirs in zip(
    jax.tree.leaves(program(*args)), jax.tree.leaves(expected), strict=True
  ):
    tolerances.assert_close(ours, theirs)
