"""Multiply-adds and bytes of a call, by which the cheaper form is chosen.

Which of the two forms is cheaper depends on the number of queries, the number
of keys and the widths alone, so it is known before anything is compiled.
"""

from collections.abc import Sequence
import dataclasses
import math

from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import types


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
