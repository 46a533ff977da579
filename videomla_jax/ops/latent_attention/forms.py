"""The two arrangements of latent attention around one flash kernel.

  expanded   K = c W_uk, V = c W_uv per head, for the length of one call
  absorbed   q W_ukᵀ against the latents themselves; (Σ p c) W_uv afterwards

A kernel sees queries of H heads and segments of keys with H heads or with one
head that all queries share. Absorbed is the second with H = 1: the heads are
further rows of queries, and the latent is both key and value.
"""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import NamedTuple

from einops import rearrange
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import specs


class KeyValue(NamedTuple):
  """One segment of what a flash kernel attends to.

  Attributes:
    content: Content part of the keys, K heads; where it is the value, it may be
      in eight bits with a scale per key.
    rope: Rotated positional part, shared by all heads.
    value: Values, or None where the content is the value.
    valid: True where a granule of S / G keys may be seen. What invalid keys
      hold must be finite.
  """

  content: Float[Array, "B S K d"] | quantise.Quantised
  rope: Float[Array, "B S d_r"]
  value: Float[Array, "B S K D"] | None
  valid: Bool[Array, "B G"]

  @property
  def granule(self) -> int:
    """Keys per entry of `valid`."""
    return self.content.shape[1] // self.valid.shape[1]

  @property
  def valid_keys(self) -> Bool[Array, "B S"]:
    """Validity of every key."""
    return jnp.repeat(self.valid, self.granule, axis=1)

  @property
  def values(self) -> Array | quantise.Quantised:
    """Values, whether stored or the content itself."""
    return self.content if self.value is None else self.value

  @property
  def is_eight_bit(self) -> bool:
    """True where content and values have a scale per key."""
    return isinstance(self.content, quantise.Quantised)

  def dequantised(self) -> "KeyValue":
    """The segment with its content in the dtype of the positional part."""
    if not self.is_eight_bit:
      return self
    return self._replace(
      content=quantise.dequantise(self.content, self.rope.dtype)
    )


# (queries, segments, scale=) -> per-head values [B R H D]
Flash = Callable[..., Array]


def check(
  name: str,
  queries: specs.Queries,
  segments: Sequence[KeyValue],
  *,
  dtypes: Sequence[str],
  eight_bits: bool = False,
) -> None:
  """Refuses what no kernel can take, before anything is lowered.

  Args:
    name: Of the kernel, for errors.
    queries: Content and rotated positional queries.
    segments: Keys and values.
    dtypes: Names of the dtypes that the kernel knows.
    eight_bits: Whether the kernel dequantises content.

  Raises:
    NotImplementedError: If there are no keys, or heads, dtypes or the presence
      of values differ, or keys are in eight bits and the kernel has no scales.
  """
  heads, dtype = queries.content.shape[2], queries.content.dtype
  if not segments:
    raise NotImplementedError(f"{name}: there are no keys")
  if dtype.name not in dtypes:
    raise NotImplementedError(f"{name}: dtype {dtype} is none of {dtypes}")
  if len({s.value is None for s in segments}) > 1:
    raise NotImplementedError(
      f"{name}: some segments have values of their own, others not"
    )
  for s in segments:
    if s.content.shape[2] != heads:
      raise NotImplementedError(
        f"{name}: keys have {s.content.shape[2]} heads, queries {heads}"
      )
    if s.is_eight_bit and not (eight_bits and s.value is None):
      raise NotImplementedError(
        f"{name}: does not dequantise keys in eight bits; triton and "
        "pallas_triton do in the absorbed form"
      )
    plain = [
      x.dtype
      for x in (s.rope, s.content, s.values)
      if not isinstance(x, quantise.Quantised)
    ]
    if set(plain) != {dtype}:
      raise NotImplementedError(f"{name}: queries and keys differ in dtype")


def attend(
  flash: Flash,
  queries: specs.Queries,
  keys: Sequence[specs.Keys],
  up: specs.UpProjections,
  *,
  form: specs.Form,
) -> Float[Array, "B L N D"]:
  """Runs a flash kernel in one of the two forms.

  Args:
    flash: The kernel.
    queries: Content and rotated positional queries.
    keys: Segments of latents.
    up: Up-projections.
    form: "expanded" or "absorbed".

  Returns:
    Per-head values; VideoMLA (arXiv:2605.30351), Eq. (7), or (8) and (10).
  """
  width = queries.content.shape[-1] + queries.rope.shape[-1]
  run = {"expanded": _expanded, "absorbed": _absorbed}[form]
  return run(flash, queries, keys, up, 1 / math.sqrt(width))


def _expanded(flash, queries, keys, up, scale):
  def project(content, weight):
    # Else XLA makes one product of several and copies the parts out of it.
    return _project(*jax.lax.optimization_barrier((content, weight)))

  segments = tuple(
    KeyValue(
      content=project(k.content, up.key),
      rope=k.rope,
      value=project(k.content, up.value),
      valid=k.valid,
    )
    for k in keys
  )
  return flash(queries, segments, scale=scale)


def _project(content, weight):
  """Applies W per head; in eight bits (s c) W = s (c W).

  So the product reads bytes, which it takes exactly, and nothing writes a
  dequantised copy. The product is rounded before it is scaled, since XLA would
  write it in float32: it fuses no second operand into what follows a product.
  """
  if not isinstance(content, quantise.Quantised):
    return jnp.einsum("BSc,cNd->BSNd", content, weight)
  values = content.values.astype(weight.dtype)
  scale = content.scale.astype(weight.dtype)[..., None]
  return scale * jnp.einsum("BSc,cNd->BSNd", values, weight)


def _absorbed(flash, queries, keys, up, scale):
  folded = jnp.einsum("BLNd,cNd->BLNc", queries.content, up.key)
  rows = specs.Queries(
    *(rearrange(q, "B L N d -> B (L N) 1 d") for q in (folded, queries.rope))
  )
  segments = tuple(
    KeyValue(
      jax.tree.map(lambda x: x[:, :, None], k.content), k.rope, None, k.valid
    )
    for k in keys
  )
  context = flash(rows, segments, scale=scale)
  context = context.reshape(folded.shape)
  return jnp.einsum("BLNc,cNd->BLNd", context, up.value)
