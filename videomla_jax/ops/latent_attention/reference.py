"""Latent attention as the paper writes it, in float32 and without blocks.

VideoMLA (arXiv:2605.30351), Eq. (2) and (7). All scores exist at once, so this
is for tests and for windows that fit in cache memory.
"""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from videomla_jax.ops.latent_attention import types

MASKED = -1e30  # finite, so that softmax never sees inf - inf


def attention(
  query: Float[Array, "B L N D"],
  key: Float[Array, "B S N D"],
  value: Float[Array, "B S N V"],
  valid: Bool[Array, "B S"],
  *,
  scale: float,
) -> Float[Array, "B L N V"]:
  """Softmax attention over the valid keys, scores and softmax in float32."""
  score = jnp.einsum(
    "BLND,BSND->BNLS", query, key, preferred_element_type=jnp.float32
  )
  score = jnp.where(valid[:, None, None], score * scale, MASKED)
  weight = jax.nn.softmax(score, axis=-1).astype(value.dtype)
  return jnp.einsum("BNLS,BSNV->BLNV", weight, value)


def latent_attention(
  queries: types.Queries,
  keys: Sequence[types.Keys],
  up: types.UpProjections,
  *,
  form: types.Form = "expanded",
) -> Float[Array, "B L N D"]:
  """Computes Eq. (7) term by term: content score plus positional score.

  Args:
    queries: Content queries and rotated positional queries.
    keys: Segments of content latents and rotated positional keys.
    up: Up-projections of the latents.
    form: "expanded", the only one that the equation has.

  Returns:
    The value of every head, before the output projection.

  Raises:
    NotImplementedError: If another form is asked for.
  """
  if form != "expanded":
    raise NotImplementedError(f"reference: has no {form} form")
  value = jnp.einsum(
    "BSc,cNd->BSNd",
    types.join(keys).content,
    up.value,
    preferred_element_type=jnp.float32,
  )
  weights = probabilities(queries, keys, up)
  out = jnp.einsum("BNLS,BSNd->BLNd", weights, value)
  return out.astype(queries.content.dtype)


def probabilities(
  queries: types.Queries,
  keys: Sequence[types.Keys],
  up: types.UpProjections,
) -> Float32[Array, "B N L S"]:
  """Returns the softmax of Eq. (7): how much each query looks at each key.

  Args:
    queries: Content queries and rotated positional queries.
    keys: Segments of content latents and rotated positional keys.
    up: Up-projections of the latents, of which that of keys is read.
  """
  f32 = jnp.float32
  joined = types.join(keys)
  key_content = jnp.einsum(
    "BSc,cNd->BSNd", joined.content, up.key, preferred_element_type=f32
  )
  score = jnp.einsum(
    "BLNd,BSNd->BNLS", queries.content.astype(f32), key_content
  ) + jnp.einsum(
    "BLNr,BSr->BNLS", queries.rope.astype(f32), joined.rope.astype(f32)
  )
  width = queries.content.shape[-1] + queries.rope.shape[-1]
  valid = joined.valid[:, None, None]
  score = jnp.where(valid, score / math.sqrt(width), MASKED)
  return jax.nn.softmax(score, axis=-1)
