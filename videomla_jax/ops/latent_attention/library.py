"""Attention of other libraries for the expanded form: cuDNN and tokamax.

They take a number of keys per row of the batch, but no holes among them. A
softmax does not depend on the order of the keys, so valid blocks are put in
front. For latent attention these are latents, 24 times smaller than the keys
and values that are made of them. A mask is no way out: cuDNN takes one only as
a bias in memory, a number for every pair of a query and a key.
"""

from collections.abc import Sequence
import functools
import importlib
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

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
    key_value_seq_lengths: Int[Array, "B"] | None = None,
  ) -> Float[Array, "B L N V"]:
    """Returns softmax(scale Q Kᵀ) V over the first keys of each row, or all."""


@jax.custom_vjp
def permuted(
  x: Shaped[Array, "B G ..."], order: Int[Array, "B G"]
) -> Shaped[Array, "B G ..."]:
  """Puts the blocks of each row of the batch in another order.

  JAX's own gradient of this adds up blocks, since it does not know that each
  comes once; here it is a permutation, too.

  Args:
    x: Blocks.
    order: The present place of each block of the result; a permutation.
  """
  index = order.reshape(*order.shape, *(1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)


permuted.defvjp(
  lambda x, order: (permuted(x, order), order),
  lambda order, d_x: (permuted(d_x, jnp.argsort(order, axis=1)), None),
)


def valid_first(
  arrays: Sequence[Shaped[Array, "B S ..."]], valid: Bool[Array, "B G"]
) -> tuple[list[Shaped[Array, "B S ..."]], Int[Array, "B"]]:
  """Puts the keys of valid blocks in front.

  Args:
    arrays: Arrays with a row for each key.
    valid: A flag for each block of S / G keys.

  Returns:
    The arrays, and the number of valid keys of each row of the batch.
  """
  # False is sorted before True, hence the negation.
  order = jnp.argsort(~valid, axis=1, stable=True)
  block = arrays[0].shape[1] // valid.shape[1]

  def moved(x: Shaped[Array, "B S ..."]) -> Shaped[Array, "B S ..."]:
    blocks = x.reshape(*valid.shape, block, *x.shape[2:])
    return permuted(blocks, order).reshape(x.shape)

  return [moved(x) for x in arrays], valid.sum(1, dtype=jnp.int32) * block


def joined(
  keys: Sequence[types.Keys],
) -> tuple[Float[Array, "B S d"], Bool[Array, "B G"]]:
  """Joins segments, and each latent with its positional key.

  Args:
    keys: Segments.

  Returns:
    Latents followed by positional keys, and flags of blocks of one size.
  """
  sizes = [k.content.shape[1] // k.valid.shape[1] for k in keys]
  block = math.gcd(*sizes)
  valid = [
    jnp.repeat(k.valid, size // block, axis=1)
    for k, size in zip(keys, sizes, strict=True)
  ]
  rows = [jnp.concatenate([k.latents, k.rope], axis=-1) for k in keys]
  return jnp.concatenate(rows, axis=1), jnp.concatenate(valid, axis=1)


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
    keys: Segments of latents.
    up: Up-projections of the latents.
    form: "expanded", the only one that libraries have.
    name: Name of the library, for errors.
    attention: The library's function.

  Returns:
    The value of every head.

  Raises:
    NotImplementedError: If another form is asked for.
  """
  if form != "expanded":
    raise NotImplementedError(f"{name}: has no {form} form")
  rows, valid = joined(keys)
  (rows,), lengths = valid_first([rows], valid)
  # As in `forms`, the barrier keeps XLA from making one product of two, whose
  # halves it would have to copy out.
  key, value = (
    jnp.einsum("BSc,cNd->BSNd", *jax.lax.optimization_barrier((rows, weight)))
    for weight in with_positions(up, rope=keys[0].rope.shape[-1])
  )
  query = jnp.concatenate(queries, axis=-1)
  return attention(
    query,
    key,
    value,
    scale=1 / math.sqrt(query.shape[-1]),
    key_value_seq_lengths=lengths,
  )


def with_positions(
  up: types.UpProjections, *, rope: int
) -> tuple[Float[Array, "d N K"], Float[Array, "d N D"]]:
  """Extends the up-projections to latents followed by positional keys.

    [c | k_r] [[W_uk, 0], [0, I]] = [c W_uk | k_r]    [c | k_r] [[W_uv], [0]]

  The product thereby writes each head's key with its positional part, which
  would otherwise be copied behind it for every key and head. Multiplying by one
  and adding zeros is exact.

  Args:
    up: W_uk and W_uv.
    rope: d_r, channels of the positional key.

  Returns:
    The weights of keys and of values.
  """
  heads, content = up.key.shape[1:]
  identity = jnp.eye(rope, dtype=up.key.dtype)[:, None]
  positions = jnp.concatenate(
    [
      jnp.zeros((rope, heads, content), up.key.dtype),
      jnp.broadcast_to(identity, (rope, heads, rope)),
    ],
    axis=-1,
  )
  widened = jnp.pad(up.key, ((0, 0), (0, 0), (0, rope)))
  key = jnp.concatenate([widened, positions], axis=0)
  return key, jnp.pad(up.value, ((0, rope), (0, 0), (0, 0)))


def dense_attention(
  query: Float[Array, "B L N D"],
  key: Float[Array, "B S N D"],
  value: Float[Array, "B S N V"],
  valid: Bool[Array, "B G"] | None,
  *,
  scale: float,
  attention: Attention,
) -> Float[Array, "B L N V"]:
  """Computes dense attention with a library's own attention.

  Args:
    query: Queries of every head.
    key: Keys of every head.
    value: Values of every head.
    valid: A flag for each block of S / G keys; None if all are valid, and then
      nothing is moved.
    scale: Logit multiplier.
    attention: The library's function.

  Returns:
    The value of every head.
  """
  if valid is None:
    return attention(query, key, value, scale=scale)
  (key, value), lengths = valid_first([key, value], valid)
  return attention(
    query, key, value, scale=scale, key_value_seq_lengths=lengths
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
