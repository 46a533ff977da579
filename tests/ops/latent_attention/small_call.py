"""One small call, its sizes, and which of its keys are valid."""

import jax.numpy as jnp
import numpy as np

from videomla_jax.ops.latent_attention import types

# In this order; all differ, so that no two axes can be mixed up.
SIZES = B, L, S, N, C, R, DN, D = 2, 5, 22, 3, 7, 4, 6, 10


VALIDITY = (
  "full",
  "part-filled",
  "single",
  "empty first block",
  "empty middle block",
  "wrapped",
)


def validity_of(kind, rng):
  """Valid slots; no query goes without a key."""
  if kind == "full":
    return np.ones((B, S), bool)
  if kind == "part-filled":
    return np.arange(S) < np.asarray([[5], [17]])
  if kind == "single":
    return np.arange(S) == rng.integers(0, S, (B, 1))
  if kind == "empty first block":
    return np.broadcast_to(np.arange(S) >= 9, (B, S))
  if kind == "empty middle block":
    return np.broadcast_to((np.arange(S) < 3) | (np.arange(S) > 18), (B, S))
  # A ring in the middle of a write: holes anywhere.
  return (rng.random((B, S)) < 0.5) | (np.arange(S) == 21)


def inputs(seed, validity="wrapped"):
  """Queries, keys and up-projections, and the gradient of the output."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  queries = types.Queries(draw(B, L, N, DN), draw(B, L, N, R))
  keys = types.Keys(
    draw(B, S, C), draw(B, S, R), jnp.asarray(validity_of(validity, rng))
  )
  up = types.UpProjections(0.5 * draw(C, N, DN), 0.5 * draw(C, N, D))
  return queries, keys, up, draw(B, L, N, D)
