"""Attention of other libraries for the expanded form: cuDNN and tokamax.

They know a length of keys per stream but no holes, and a softmax needs no
order: the frames of all segments are joined as latents (24 times smaller than
keys and values), valid ones first.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import importlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import specs


def valid_first(
  keys: Sequence[specs.Keys],
) -> tuple[specs.Keys, Int[Array, "B"]]:
  """Joins segments with valid granules in front.

  Args:
    keys: Segments with granules of one size.

  Returns:
    One segment and the number of its valid keys per stream.

  Raises:
    NotImplementedError: If granules differ in size.
  """
  sizes = {k.content.shape[1] // k.valid.shape[1] for k in keys}
  if len(sizes) > 1:
    raise NotImplementedError(f"segments have granules of {sorted(sizes)} keys")
  (granule,) = sizes
  valid = jnp.concatenate([k.valid for k in keys], axis=1)
  order = jnp.argsort(~valid, axis=1, stable=True)

  def joined(parts):
    x = jnp.concatenate(parts, axis=1)
    frames = x.reshape(*valid.shape, granule, x.shape[-1])
    frames = jnp.take_along_axis(frames, order[:, :, None, None], axis=1)
    return frames.reshape(x.shape)

  ordered = specs.Keys(
    joined([k.latents for k in keys]),
    joined([k.rope for k in keys]),
    jnp.take_along_axis(valid, order, axis=1),
  )
  return ordered, valid.sum(1, dtype=jnp.int32) * granule


def latent_attention(
  queries: specs.Queries,
  keys: Sequence[specs.Keys],
  up: specs.UpProjections,
  *,
  form: specs.Form,
  name: str,
  attention: Callable[..., Array],
) -> Float[Array, "B L N D"]:
  """Expanded latent attention through a library's dot-product attention.

  Args:
    queries: Content and rotated positional queries.
    keys: Segments of latents, of one frame size.
    up: Up-projections.
    form: "expanded".
    name: Of the library, for errors.
    attention: Takes query, key, value, `scale` and `key_value_seq_lengths`.

  Raises:
    NotImplementedError: If the library cannot run this.
  """
  if form != "expanded":
    raise NotImplementedError(f"{name}: has no absorbed form")
  try:
    ordered, lengths = valid_first(keys)
    return forms.attend(
      functools.partial(_flash, attention, lengths),
      queries,
      (ordered,),
      up,
      form=form,
    )
  except (NotImplementedError, ValueError, RuntimeError) as error:
    raise NotImplementedError(f"{name}: {error}") from error


def _flash(attention, lengths, queries, segments, *, scale):
  (segment,) = segments
  shape = (*segment.content.shape[:3], segment.rope.shape[-1])
  rope = jnp.broadcast_to(segment.rope[:, :, None], shape)
  return attention(
    jnp.concatenate(queries, axis=-1),
    jnp.concatenate([segment.content, rope], axis=-1),
    segment.values,
    scale=scale,
    key_value_seq_lengths=lengths,
  )


def cudnn() -> Callable[..., Array]:
  """The attention of cuDNN through JAX."""
  return functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


def tokamax() -> Callable[..., Array]:
  """Tokamax's attention, which chooses among its own kernels.

  Raises:
    NotImplementedError: If it is not installed.
  """
  try:
    return importlib.import_module("tokamax").dot_product_attention
  except ImportError as error:
    raise NotImplementedError("tokamax: is not installed") from error
