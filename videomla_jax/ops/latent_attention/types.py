"""The arguments of attention, and what an implementation of it must look like.

`Keys` is what the cache holds. `KeyValue` is what a flash kernel reads after
one of the two forms has been chosen. A validity block is a run of keys that are
valid together: the tokens of a latent frame in the ring, or a single key.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videomla_jax.ops import quantise

Form = Literal["auto", "expanded", "absorbed"]


def per_key(
  valid: Bool[Array, "B G"], *, num_keys: int
) -> Bool[Array, "B {num_keys}"]:
  """Repeats the flag of each validity block for each of its keys.

  Args:
    valid: One flag per validity block.
    num_keys: S, a multiple of the number of blocks.
  """
  return jnp.repeat(valid, num_keys // valid.shape[1], axis=1)


def flags_of(
  valid: Bool[Array, "B G"] | None, key: Float[Array, "B S N D"]
) -> Bool[Array, "B G"]:
  """Returns the flags of keys; one that is true where None says that all are.

  Args:
    valid: Flags of blocks, or None.
    key: The keys, for the rows of the batch.
  """
  return jnp.ones((key.shape[0], 1), bool) if valid is None else valid


class Queries(NamedTuple):
  """Queries of all heads of one layer, in two parts.

  Attributes:
    content: Content part, not rotated, d_n channels per head.
    rope: Positional part, rotated, d_r channels per head.
  """

  content: Float[Array, "B L N d_n"]
  rope: Float[Array, "B L N d_r"]


class Keys(NamedTuple):
  """One segment of the keys of a layer: the ring, or the chunk's own keys.

  Attributes:
    content: Content latents, which all heads share; perhaps in eight bits with
      a scale per key.
    rope: Rotated positional keys, which all heads share.
    valid: False where a validity block of S / G keys must not be seen. Every
      query needs one valid key in some segment, and what invalid keys hold must
      be finite.
  """

  content: Float[Array, "B S d_c"] | quantise.Quantised
  rope: Float[Array, "B S d_r"]
  valid: Bool[Array, "B G"]

  @property
  def valid_keys(self) -> Bool[Array, "B S"]:
    """A flag for every key."""
    return per_key(self.valid, num_keys=self.content.shape[1])

  @property
  def latents(self) -> Float[Array, "B S d_c"]:
    """Content latents, dequantised to the dtype of `rope` if necessary."""
    if not isinstance(self.content, quantise.Quantised):
      return self.content
    return quantise.dequantise(self.content, self.rope.dtype)


def join(segments: Sequence[Keys]) -> Keys:
  """Copies segments into one with a flag per key, dequantised."""
  return Keys(
    jnp.concatenate([s.latents for s in segments], axis=1),
    jnp.concatenate([s.rope for s in segments], axis=1),
    jnp.concatenate([s.valid_keys for s in segments], axis=1),
  )


class UpProjections(NamedTuple):
  """Maps from the content latent to each head, VideoMLA Eq. (2).

  Attributes:
    key: W_uk, which makes the content part of the keys.
    value: W_uv, which makes the values.
  """

  key: Float[Array, "d_c N d_n"]
  value: Float[Array, "d_c N D"]


def check(queries: Queries, keys: Sequence[Keys], up: UpProjections) -> None:
  """Refuses arguments that do not fit together, whoever computes them.

  Args:
    queries: Queries of all heads.
    keys: Segments of keys.
    up: Up-projections.

  Raises:
    ValueError: With the sizes that differ.
  """
  if not keys:
    raise ValueError("keys is empty; give one segment or more.")
  batch, length, heads, content = queries.content.shape
  d_c, d_r = up.key.shape[0], queries.rope.shape[-1]
  sizes = {
    "queries.rope": (queries.rope.shape, (batch, length, heads, d_r)),
    "up.key": (up.key.shape, (d_c, heads, content)),
    "up.value": (up.value.shape, (d_c, heads, up.value.shape[-1])),
  }
  for i, k in enumerate(keys):
    count = k.content.shape[1]
    sizes[f"keys[{i}].content"] = (k.content.shape, (batch, count, d_c))
    sizes[f"keys[{i}].rope"] = (k.rope.shape, (batch, count, d_r))
    check_blocks(k.valid.shape, batch=batch, num_keys=count)
  for name, (found, wanted) in sizes.items():
    if found != wanted:
      raise ValueError(f"{name} has shape {found} but must have {wanted}.")


def check_blocks(shape: tuple[int, ...], *, batch: int, num_keys: int) -> None:
  """Refuses flags that do not divide the keys into blocks.

  Args:
    shape: Shape of the flags.
    batch: Rows of the batch.
    num_keys: S, keys of each row.

  Raises:
    ValueError: If they are of another batch, or do not divide the keys.
  """
  if len(shape) != 2 or shape[0] != batch or num_keys % (shape[1] or 1):
    raise ValueError(
      f"valid has shape {shape} but must have a row for each of {batch} rows "
      f"of the batch, and a number of flags that divides {num_keys} keys."
    )


class KeyValue(NamedTuple):
  """One segment of what a flash kernel attends to.

  Attributes:
    content: Content part of the keys, for K heads. Where it is the value as
      well, it may be in eight bits with a scale per key.
    rope: Rotated positional part, which all heads share.
    value: Values, or None where the content is the value.
    valid: False where a validity block of S / G keys must not be seen. What
      invalid keys hold must be finite.
  """

  content: Float[Array, "B S K d"] | quantise.Quantised
  rope: Float[Array, "B S d_r"]
  value: Float[Array, "B S K D"] | None
  valid: Bool[Array, "B G"]

  @property
  def validity_block(self) -> int:
    """Keys per entry of `valid`."""
    return self.content.shape[1] // self.valid.shape[1]

  @property
  def valid_keys(self) -> Bool[Array, "B S"]:
    """A flag for every key."""
    return per_key(self.valid, num_keys=self.content.shape[1])

  @property
  def values(self) -> Array | quantise.Quantised:
    """The values: `value`, or the content where that is the value."""
    return self.content if self.value is None else self.value

  @property
  def is_eight_bit(self) -> bool:
    """True where content and values have a scale per key."""
    return isinstance(self.content, quantise.Quantised)

  def dequantised(self) -> "KeyValue":
    """Returns the segment with its content in the dtype of `rope`."""
    if not self.is_eight_bit:
      return self
    return self._replace(
      content=quantise.dequantise(self.content, self.rope.dtype)
    )


@runtime_checkable
class Flash(Protocol):
  """A kernel: queries of H heads attend to keys of H heads, or of one."""

  def __call__(
    self, queries: Queries, segments: Sequence[KeyValue], *, scale: float
  ) -> Float[Array, "B R H D"]:
    """Returns the value of every query row and head."""


@runtime_checkable
class Implementation(Protocol):
  """The whole operation in one of its forms, see `api.latent_attention`."""

  def __call__(
    self,
    queries: Queries,
    keys: Sequence[Keys],
    up: UpProjections,
    *,
    form: Form,
  ) -> Float[Array, "B L N D"]:
    """Returns the value of every query and head."""


@runtime_checkable
class DenseImplementation(Protocol):
  """Dense attention, see `api.dense_attention`."""

  def __call__(
    self,
    query: Float[Array, "B L N D"],
    key: Float[Array, "B S N D"],
    value: Float[Array, "B S N V"],
    valid: Bool[Array, "B G"] | None,
    *,
    scale: float,
  ) -> Float[Array, "B L N V"]:
    """Returns the value of every query and head."""
