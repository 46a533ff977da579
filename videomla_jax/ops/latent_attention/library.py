"""Attention of other libraries for the expanded form: cuDNN and tokamax.

They take a number of keys per row of the batch, but no holes among them. A
softmax does not depend on the order of the keys, so the frames of all segments
are joined with the valid ones in front, as latents: these are 24 times smaller
than the keys and values that are made of them.
"""

from collections.abc import Sequence
import functools
import importlib
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import types


@runtime_checkable
class Attention(Protocol):
  """Dot-product attention with the arguments of `jax.nn`."""

  def __call__(
    self,
    query: Float[Array, "B L N D"],
    key: Float[Array, "B S N D"],
    value: Float[Array, "B S N V"],
    *,
    scale: float,
    key_value_seq_lengths: Int[Array, "B"],
  ) -> Float[Array, "B L N V"]:
    """Returns softmax(scale Q Kᵀ) V over the first keys of each row."""


def valid_first(
  keys: Sequence[types.Keys],
) -> tuple[types.Keys, Int[Array, "B"]]:
  """Joins segments, with the valid keys in front.

  Args:
    keys: Segments whose validity blocks have one size.

  Returns:
    One segment, and the number of its valid keys for each row of the batch.

  Raises:
    NotImplementedError: If the sizes of the validity blocks differ.
  """
  sizes = {k.content.shape[1] // k.valid.shape[1] for k in keys}
  if len(sizes) > 1:
    raise NotImplementedError(
      f"segments have validity blocks of {sorted(sizes)} keys"
    )
  (block,) = sizes
  valid = jnp.concatenate([k.valid for k in keys], axis=1)
  # False is sorted before True, hence the negation.
  order = jnp.argsort(~valid, axis=1, stable=True)

  def joined(
    segments: Sequence[Shaped[Array, "B _ d"]],
  ) -> Shaped[Array, "B S d"]:
    x = jnp.concatenate(segments, axis=1)
    frames = x.reshape(*valid.shape, block, x.shape[-1])
    frames = jnp.take_along_axis(frames, order[:, :, None, None], axis=1)
    return frames.reshape(x.shape)

  ordered = types.Keys(
    joined([k.latents for k in keys]),
    joined([k.rope for k in keys]),
    jnp.take_along_axis(valid, order, axis=1),
  )
  return ordered, valid.sum(1, dtype=jnp.int32) * block


def latent_attention(
  queries: types.Queries,
  keys: Sequence[types.Keys],
  up: types.UpProjections,
  *,
  form: types.Form,
  name: str,
  attention: Attention,
) -> Float[Array, "B L N D"]:
  """Computes expanded latent attention with a library's own attention.

  Args:
    queries: Content queries and rotated positional queries.
    keys: Segments of latents whose frames have one size.
    up: Up-projections of the latents.
    form: "expanded", the only one that libraries have.
    name: Name of the library, for errors.
    attention: The library's function.

  Returns:
    The value of every head.

  Raises:
    NotImplementedError: If the library cannot run this call.
  """
  if form != "expanded":
    raise NotImplementedError(f"{name}: has no {form} form")
  try:
    ordered, lengths = valid_first(keys)
    return forms.attend(
      functools.partial(_flash, attention, lengths),
      queries,
      (ordered,),
      up,
      form=form,
    )
  # Libraries refuse a call by errors of their own kinds. Any of them lets the
  # next implementation try.
  except (NotImplementedError, ValueError, RuntimeError) as error:
    raise NotImplementedError(f"{name}: {error}") from error


def _flash(
  attention: Attention,
  lengths: Int[Array, "B"],
  queries: types.Queries,
  segments: Sequence[types.KeyValue],
  *,
  scale: float,
) -> Float[Array, "B L N D"]:
  """Calls the library, with the positional key copied to every head."""
  (segment,) = segments
  content, value = segment.content, segment.value
  assert not isinstance(content, quantise.Quantised)
  assert value is not None
  shape = (*content.shape[:3], segment.rope.shape[-1])
  rope = jnp.broadcast_to(segment.rope[:, :, None], shape)
  return attention(
    jnp.concatenate(queries, axis=-1),
    jnp.concatenate([content, rope], axis=-1),
    value,
    scale=scale,
    key_value_seq_lengths=lengths,
  )


def cudnn() -> Attention:
  """Returns cuDNN's attention, which JAX calls."""
  return functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


def tokamax() -> Attention:
  """Returns Tokamax's attention, which chooses among its own kernels.

  Raises:
    NotImplementedError: If Tokamax is not installed.
  """
  try:
    return importlib.import_module("tokamax").dot_product_attention
  except ImportError as error:
    raise NotImplementedError("tokamax: is not installed") from error
