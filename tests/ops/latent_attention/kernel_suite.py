"""What every flash kernel must do, written once; kernels are arguments.

Sizes are powers of two and multiples of 16, as tensor cores want them. Keys
come as a ring of frames and the own chunk; none divides into whole blocks.
"""

from collections.abc import Callable
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from tests import tolerances
from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import types

B, N, P = 2, 2, 19

# Validity of the ring for two rows of the batch; the chunk is always valid.
VALIDITY = {
  "full": [[1, 1, 1], [1, 1, 1]],
  "part-filled": [[1, 0, 0], [1, 1, 0]],
  "holes": [[1, 0, 1], [0, 1, 0]],
  "empty": [[0, 0, 0], [0, 0, 0]],
  "one row empty": [[0, 0, 0], [1, 1, 1]],
}


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Widths of a call and its lengths."""

  d_c: int = 32
  rope: int = 16
  content: int = 48
  value: int = 64
  length: int = 21
  own: int = 2 * P


def inputs(seed, validity="holes", sizes=Sizes(), dtype=jnp.float32):
  """Fresh random queries, segments and up-projections."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
  ring = types.Keys(
    draw(B, 3 * P, sizes.d_c),
    draw(B, 3 * P, sizes.rope),
    jnp.asarray(VALIDITY[validity], bool),
  )
  own = types.Keys(
    draw(B, sizes.own, sizes.d_c),
    draw(B, sizes.own, sizes.rope),
    jnp.ones((B, 1), bool),
  )
  queries = types.Queries(
    draw(B, sizes.length, N, sizes.content),
    draw(B, sizes.length, N, sizes.rope),
  )
  root = 1 / math.sqrt(sizes.d_c)
  up = types.UpProjections(
    root * draw(sizes.d_c, N, sizes.content),
    root * draw(sizes.d_c, N, sizes.value),
  )
  return queries, (ring, own), up


def in_eight_bits(args, dtype: str, *, exact: bool = False):
  """The same call with the ring stored in eight bits.

  Args:
    args: See `inputs`.
    dtype: Of the stored content.
    exact: Round scales to powers of two: no product with one rounds.
  """
  queries, (ring, *rest), up = args
  stored = quantise.quantise(ring.content, dtype=dtype)
  if exact:
    scale = jnp.exp2(jnp.round(jnp.log2(stored.scale.astype(jnp.float32))))
    stored = stored._replace(scale=scale.astype(stored.scale.dtype))
  return queries, (ring._replace(content=stored), *rest), up


def dequantised(args):
  """The same call with every segment in the dtype of its positional keys."""
  queries, keys, up = args
  return queries, tuple(k._replace(content=k.latents) for k in keys), up


@functools.cache  # One function per kernel and form, so jit compiles once.
def latent_attention(flash: Callable, form: str) -> Callable:
  """The whole operation around a kernel."""
  return functools.partial(forms.attend, flash, form=form)


def paper(queries, keys, up):
  """Eq. (7) in float64, head by head."""
  to = lambda x: np.asarray(x, bool if x.dtype == bool else np.float64)
  joined = jax.tree.map(to, types.join(keys))
  queries, up = jax.tree.map(to, (queries, up))
  scale = 1 / math.sqrt(queries.content.shape[-1] + queries.rope.shape[-1])
  score = np.einsum(
    "blnd,bsc,cnd->bnls",
    queries.content,
    joined.content,
    up.key,
    optimize=True,
  ) + np.einsum("blnr,bsr->bnls", queries.rope, joined.rope)
  score = np.where(joined.valid[:, None, None], score * scale, -np.inf)
  weight = np.exp(score - score.max(-1, keepdims=True))
  weight /= weight.sum(-1, keepdims=True)
  return np.einsum(
    "bnls,bsc,cnd->blnd", weight, joined.content, up.value, optimize=True
  )


jitted = functools.cache(jax.jit)


@functools.cache
def with_gradient(function):
  """Value and gradients of everything that is differentiable."""

  def run(queries, keys, up, cotangent):
    valid = [k.valid for k in keys]
    latents = [(k.content, k.rope) for k in keys]

    def of(queries, latents, up):
      seen = tuple(
        types.Keys(*x, v) for x, v in zip(latents, valid, strict=True)
      )
      return function(queries, seen, up)

    out, pull = jax.vjp(of, queries, latents, up)
    return out, pull(cotangent.astype(out.dtype))

  return jax.jit(run)


def check_value(flash, form, args, kind):
  """Against the paper in float64."""
  out = jitted(latent_attention(flash, form))(*args)
  tolerances.assert_close(np.asarray(out, np.float64), paper(*args), kind)
  return out


def check_gradient(flash, form, seed, args, kind, reference):
  """Against the gradient of the reference in float32; empty slots get none."""
  rng = np.random.default_rng(seed + 1)
  queries, keys, up = args
  shape = (*queries.content.shape[:3], up.value.shape[2])
  cotangent = jnp.asarray(rng.standard_normal(shape), jnp.float32)
  _, ours = with_gradient(latent_attention(flash, form))(*args, cotangent)
  wide = jax.tree.map(
    lambda x: x if x.dtype == bool else x.astype(jnp.float32), args
  )
  _, theirs = with_gradient(reference)(*wide, cotangent)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    if np.abs(b).max() > 0:
      tolerances.assert_close(np.asarray(a, np.float64), b, kind)
  for k, gradient in zip(keys, ours[1], strict=True):
    for g in gradient:
      assert not np.asarray(g)[~np.asarray(k.valid_keys)].any()
