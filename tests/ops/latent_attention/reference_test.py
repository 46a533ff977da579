"""The reference against the paper's equation in float64."""

import jax
import numpy as np
import pytest

from tests import tolerances
from tests.ops.latent_attention import small_call
from videomla_jax.ops.latent_attention import reference

B, L, S, N, _, R, DN, D = small_call.SIZES


def _plain(queries, keys, up):
  """The paper's Eq. (7) in float64, example by example and head by head."""
  queries, keys, up = jax.tree.map(
    lambda x: np.asarray(x, np.float64 if x.dtype != bool else bool),
    (queries, keys, up),
  )
  out = np.zeros((B, L, N, D))
  for b in range(B):
    seen = keys.valid[b]
    latent, rope = keys.content[b, seen], keys.rope[b, seen]
    for n in range(N):
      score = queries.content[b, :, n] @ (latent @ up.key[:, n]).T
      score = (score + queries.rope[b, :, n] @ rope.T) / np.sqrt(DN + R)
      weight = np.exp(score - score.max(-1, keepdims=True))
      weight /= weight.sum(-1, keepdims=True)
      out[b, :, n] = weight @ (latent @ up.value[:, n])
  return out


@pytest.mark.parametrize("validity", small_call.VALIDITY)
def test_reference_equals_the_paper_in_float64(seed, validity):
  queries, keys, up, _ = small_call.inputs(seed, validity)
  out = jax.jit(reference.latent_attention)(queries, (keys,), up)
  tolerances.assert_close(out, _plain(queries, keys, up))
