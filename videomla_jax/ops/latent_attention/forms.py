"""The two arrangements of latent attention around one flash kernel.

  expanded   K = c W_uk, V = c W_uv per head, for the length of one call
  absorbed   q W_ukᵀ against the latents themselves; (Σ p c) W_uv afterwards

A kernel sees queries of H heads and segments of keys with H heads, or with one
head that all queries share. Absorbed is the second case with H = 1: the heads
become further rows of queries, and the latent is both key and value.
"""

from collections.abc import Sequence
import dataclasses
import math

from einops import rearrange
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import types


def check(
  name: str,
  queries: types.Queries,
  segments: Sequence[types.KeyValue],
  *,
  dtypes: Sequence[str],
  eight_bits: bool = False,
) -> None:
  """Refuses what a kernel cannot take, before anything is lowered.

  Args:
    name: Name of the kernel, for errors.
    queries: Content queries and rotated positional queries.
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
  flash: types.Flash,
  queries: types.Queries,
  keys: Sequence[types.Keys],
  up: types.UpProjections,
  *,
  form: types.Form,
) -> Float[Array, "B L N D"]:
  """Runs a flash kernel in one of the two forms.

  VideoMLA (arXiv:2605.30351), Eq. (7), or Eq. (8) and (10).

  Args:
    flash: The kernel.
    queries: Content queries and rotated positional queries.
    keys: Segments of latents.
    up: Up-projections of the latents.
    form: "expanded" or "absorbed".

  Returns:
    The value of every head.
  """
  # Scores are those of a head in both forms, so the scale follows from its
  # width and not from that of the folded queries.
  width = queries.content.shape[-1] + queries.rope.shape[-1]
  run = {"expanded": _expanded, "absorbed": _absorbed}[form]
  return run(flash, queries, keys, up, 1 / math.sqrt(width))


def _expanded(
  flash: types.Flash,
  queries: types.Queries,
  keys: Sequence[types.Keys],
  up: types.UpProjections,
  scale: float,
) -> Float[Array, "B L N D"]:
  """Makes keys and values of every head, segment by segment."""

  def project(
    content: Float[Array, "B S d_c"] | quantise.Quantised,
    weight: Float[Array, "d_c N d"],
  ) -> Float[Array, "B S N d"]:
    # The barrier keeps the four products apart. Without it XLA makes one of all
    # and copies the parts out: 59 MB written and read again per layer and pass
    # at 480p.
    return _project(*jax.lax.optimization_barrier((content, weight)))

  segments = tuple(
    types.KeyValue(
      content=project(k.content, up.key),
      rope=k.rope,
      value=project(k.content, up.value),
      valid=k.valid,
    )
    for k in keys
  )
  return flash(queries, segments, scale=scale)


def _project(
  content: Float[Array, "B S d_c"] | quantise.Quantised,
  weight: Float[Array, "d_c N d"],
) -> Float[Array, "B S N d"]:
  """Applies W per head; in eight bits (s c) W = s (c W).

  The product takes the bytes exactly; where it is cuBLAS's, one layer of them
  is converted before it. It is rounded before it is scaled, since XLA would
  write it in float32 otherwise.
  """
  if not isinstance(content, quantise.Quantised):
    return jnp.einsum("BSc,cNd->BSNd", content, weight)
  values = content.values.astype(weight.dtype)
  scale = content.scale.astype(weight.dtype)[..., None]
  return scale * jnp.einsum("BSc,cNd->BSNd", values, weight)


def _absorbed(
  flash: types.Flash,
  queries: types.Queries,
  keys: Sequence[types.Keys],
  up: types.UpProjections,
  scale: float,
) -> Float[Array, "B L N D"]:
  """Folds W_uk into the queries and W_uv into the output."""
  folded = jnp.einsum("BLNd,cNd->BLNc", queries.content, up.key)
  rows = types.Queries(
    *(rearrange(q, "B L N d -> B (L N) 1 d") for q in (folded, queries.rope))
  )
  segments = tuple(
    types.KeyValue(
      jax.tree.map(lambda x: x[:, :, None], k.content), k.rope, None, k.valid
    )
    for k in keys
  )
  context = flash(rows, segments, scale=scale)
  context = context.reshape(folded.shape)
  return jnp.einsum("BLNc,cNd->BLNd", context, up.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """Sizes of one call of `api.latent_attention`, for one row of the batch.

  Attributes:
    queries: L, query tokens.
    keys: S, key tokens.
    heads: N, attention heads.
    content_latent: d_c, width of the content latent.
    rope: d_r, width of the positional key.
    content: d_n, content channels of a head.
    value: D, value channels of a head.
    eight_bit_keys: How many of the keys have their content in eight bits.
  """

  queries: int
  keys: int
  heads: int
  content_latent: int
  rope: int
  content: int
  value: int
  eight_bit_keys: int = 0

  def multiply_adds(self, form: types.Form) -> int:
    """Counts the multiply-adds of attention and up-projections.

    Expanded pays for making keys and values once per key; absorbed pays for
    wider products once per pair of a query and a key, and for folding W_uk into
    the query and W_uv into the output.

    Args:
      form: "expanded" or "absorbed".
    """
    pairs = self.queries * self.keys * self.heads
    per_head = self.content_latent * self.heads * (self.content + self.value)
    if form == "expanded":
      return pairs * (self.content + self.rope + self.value) + (
        self.keys * per_head
      )
    return pairs * (2 * self.content_latent + self.rope) + (
      self.queries * per_head
    )

  def num_bytes(self, form: types.Form, itemsize: int = 2) -> tuple[int, int]:
    """Counts the bytes that must be moved at least.

    Expanded writes the keys and values of every head once and reads them again;
    absorbed reads the latents, and its queries and outputs are d_c wide. A
    latent in eight bits has a byte per channel and a scale.

    Args:
      form: "expanded" or "absorbed".
      itemsize: Bytes of a number that is not in eight bits.

    Returns:
      Bytes of the up-projections, and bytes of attention itself.
    """
    heads, latent = self.heads, self.content_latent
    per_head = heads * (self.content + self.value)
    rows = self.queries * heads
    saved = latent * (itemsize - 1) - quantise.SCALE_BYTES
    latents = self.keys * latent * itemsize - self.eight_bit_keys * saved
    if form == "expanded":
      project = self.keys * per_head
      attend = self.keys * (per_head + self.rope)
      attend += rows * (self.content + self.rope + self.value)
      return latents + project * itemsize, attend * itemsize
    project = rows * (2 * latent + self.content + self.value)
    attend = self.keys * self.rope + rows * (2 * latent + self.rope)
    return project * itemsize, latents + attend * itemsize

  def cost(
    self, form: types.Form, intensity: float | int = math.inf
  ) -> float | int:
    """Weighs a form: its multiply-adds, or those that fit into its waiting.

    Args:
      form: "expanded" or "absorbed".
      intensity: Multiply-adds that a device can do while it moves one byte.
        Infinite counts multiply-adds alone.

    Returns:
      Multiply-adds. Up-projections and attention run after each other, and each
      of them counts as what takes longer, computing or moving.
    """
    if form == "expanded":
      pairs = self.content + self.rope + self.value
    else:
      pairs = 2 * self.content_latent + self.rope
    attend = self.queries * self.keys * self.heads * pairs
    work = (self.multiply_adds(form) - attend, attend)
    # Where the memory's speed is not known, bytes cannot be weighed.
    if math.isinf(intensity):
      return sum(work)
    moved = self.num_bytes(form)
    return sum(max(w, b * intensity) for w, b in zip(work, moved, strict=True))

  def cheaper_form(self, intensity: float | int = math.inf) -> types.Form:
    """Returns the form that costs less; expanded if both cost the same.

    Args:
      intensity: Multiply-adds that a device can do while it moves one byte.
    """
    costs = [self.cost(f, intensity) for f in ("expanded", "absorbed")]
    return "expanded" if costs[0] <= costs[1] else "absorbed"


def sizes_of(
  queries: types.Queries,
  keys: Sequence[types.Keys],
  up: types.UpProjections,
) -> Sizes:
  """Reads the sizes of a call from its arrays."""
  _, length, heads, content = queries.content.shape
  return Sizes(
    queries=length,
    keys=sum(k.content.shape[1] for k in keys),
    eight_bit_keys=sum(
      k.content.shape[1]
      for k in keys
      if isinstance(k.content, quantise.Quantised)
    ),
    heads=heads,
    content_latent=keys[0].content.shape[2],
    rope=keys[0].rope.shape[2],
    content=content,
    value=up.value.shape[2],
  )
