"""Types and real-world shapes of the latent attention operation."""

from collections.abc import Sequence
import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Form = Literal["auto", "expanded", "absorbed"]


class Queries(NamedTuple):
  """Queries of one layer.

  Attributes:
    content: Not rotated, d_n channels per head.
    rope: Rotated, d_r channels per head.
  """

  content: Float[Array, "B L N d_n"]
  rope: Float[Array, "B L N d_r"]


class Keys(NamedTuple):
  """A segment of keys (the ring, the own chunk), positional key rotated.

  Attributes:
    content: Content latents, shared by all heads.
    rope: Rotated positional keys, shared by all heads.
    valid: False where a granule of S / G keys (a frame) must not be seen.
      Every query needs one valid key in some segment; what invalid keys hold
      must be finite.
  """

  content: Float[Array, "B S d_c"]
  rope: Float[Array, "B S d_r"]
  valid: Bool[Array, "B G"]

  @property
  def valid_keys(self) -> Bool[Array, "B S"]:
    """Validity of every key."""
    granule = self.content.shape[1] // self.valid.shape[1]
    return jnp.repeat(self.valid, granule, axis=1)


def join(segments: Sequence[Keys]) -> Keys:
  """Copies segments into one whose granules are single keys."""
  return Keys(
    jnp.concatenate([s.content for s in segments], axis=1),
    jnp.concatenate([s.rope for s in segments], axis=1),
    jnp.concatenate([s.valid_keys for s in segments], axis=1),
  )


class UpProjections(NamedTuple):
  """Per-head maps from the content latent, VideoMLA Eq. (2).

  Attributes:
    key: W_uk, to the content part of keys.
    value: W_uv, to values.
  """

  key: Float[Array, "d_c N d_n"]
  value: Float[Array, "d_c N D"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """Sizes of one call, the shapes that are tested and benchmarked.

  Attributes:
    queries: L, query tokens.
    keys: S, key tokens.
    heads: N.
    content_latent: d_c.
    rope: d_r.
    content: d_n, content channels of a head.
    value: D, value channels of a head.
  """

  queries: int
  keys: int
  heads: int
  content_latent: int
  rope: int
  content: int
  value: int

  def multiply_adds(self, form: Form) -> int:
    """Multiply-adds of attention and up-projections for one example.

    Expanded pays for making keys and values once per key; absorbed pays for
    wider products once per query-key pair and for folding W_uk into the query
    and W_uv into the output.
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

  def cheaper_form(self) -> Form:
    """The form with fewer multiply-adds; expanded on a tie."""
    costs = [self.multiply_adds(f) for f in ("expanded", "absorbed")]
    return "expanded" if costs[0] <= costs[1] else "absorbed"


def spec_of(
  queries: Queries, keys: Sequence[Keys], up: UpProjections
) -> Spec:
  """Reads the sizes of a call from its arrays."""
  _, length, heads, content = queries.content.shape
  return Spec(
    queries=length,
    keys=sum(k.content.shape[1] for k in keys),
    heads=heads,
    content_latent=keys[0].content.shape[2],
    rope=keys[0].rope.shape[2],
    content=content,
    value=up.value.shape[2],
  )
