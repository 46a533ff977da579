"""Types and real-world shapes of the latent attention operation."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videomla_jax import shapes
from videomla_jax.ops import quantise

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
    content: Content latents, shared by all heads; perhaps in eight bits with a
      scale per key.
    rope: Rotated positional keys, shared by all heads.
    valid: False where a granule of S / G keys (a frame) must not be seen.
      Every query needs one valid key in some segment; what invalid keys hold
      must be finite.
  """

  content: Float[Array, "B S d_c"] | quantise.Quantised
  rope: Float[Array, "B S d_r"]
  valid: Bool[Array, "B G"]

  @property
  def valid_keys(self) -> Bool[Array, "B S"]:
    """Validity of every key."""
    granule = self.content.shape[1] // self.valid.shape[1]
    return jnp.repeat(self.valid, granule, axis=1)

  @property
  def latents(self) -> Float[Array, "B S d_c"]:
    """Content latents; out of eight bits they have the dtype of `rope`."""
    if not isinstance(self.content, quantise.Quantised):
      return self.content
    return quantise.dequantise(self.content, self.rope.dtype)


def join(segments: Sequence[Keys]) -> Keys:
  """Copies segments into one whose granules are single keys, dequantised."""
  return Keys(
    jnp.concatenate([s.latents for s in segments], axis=1),
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
    eight_bit_keys: Those of the keys whose content is stored in eight bits.
  """

  queries: int
  keys: int
  heads: int
  content_latent: int
  rope: int
  content: int
  value: int
  eight_bit_keys: int = 0

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

  def num_bytes(self, form: Form, itemsize: int = 2) -> tuple[int, int]:
    """Bytes moved at least: by the up-projections, and by attention itself.

    Expanded writes keys and values of every head once and reads them again;
    absorbed reads the latents, and its queries and outputs are d_c wide. A
    latent in eight bits has a byte per channel and a scale.
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

  def cost(self, form: Form, intensity: float | int = math.inf) -> float | int:
    """Multiply-adds of a form, or what waiting for memory is worth.

    Args:
      form: "expanded" or "absorbed".
      intensity: Multiply-adds that a device does per byte it moves. Infinite
        counts multiply-adds alone.
    """
    if form == "expanded":
      pairs = self.content + self.rope + self.value
    else:
      pairs = 2 * self.content_latent + self.rope
    attend = self.queries * self.keys * self.heads * pairs
    work = (self.multiply_adds(form) - attend, attend)
    if math.isinf(intensity):
      return sum(work)
    moved = self.num_bytes(form)
    return sum(max(w, b * intensity) for w, b in zip(work, moved, strict=True))

  def cheaper_form(self, intensity: float | int = math.inf) -> Form:
    """The form of least cost; expanded on a tie."""
    costs = [self.cost(f, intensity) for f in ("expanded", "absorbed")]
    return "expanded" if costs[0] <= costs[1] else "absorbed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """A call as the rollout makes it.

  Attributes:
    spec: Sizes.
    history_frames: Frames of the ring, the sink included.
    chunk_frames: Frames of the own chunk.
    frame_tokens: P.
    batch: Streams.
    cache_dtype: Of the ring's latents, in eight bits; the call's if None.
  """

  spec: Spec
  history_frames: int
  chunk_frames: int
  frame_tokens: int
  batch: int = 1
  cache_dtype: str | None = None

  def arguments(
    self, dtype: Any
  ) -> tuple[Queries, tuple[Keys, ...], UpProjections]:
    """Abstract arguments of `api.latent_attention`."""
    s, b = self.spec, self.batch

    def array(*sizes):
      return jax.ShapeDtypeStruct(sizes, dtype)

    def segment(frames, stored):
      keys = frames * self.frame_tokens

      def make():
        content = jnp.zeros((b, keys, s.content_latent), dtype)
        if stored is not None:
          content = quantise.quantise(content, dtype=stored)
        rope = jnp.zeros((b, keys, s.rope), dtype)
        return Keys(content, rope, jnp.ones((b, frames), bool))

      return jax.eval_shape(make)

    queries = Queries(
      array(b, s.queries, s.heads, s.content),
      array(b, s.queries, s.heads, s.rope),
    )
    up = UpProjections(
      array(s.content_latent, s.heads, s.content),
      array(s.content_latent, s.heads, s.value),
    )
    parts = (
      (self.history_frames, self.cache_dtype),
      (self.chunk_frames, None),
    )
    return queries, tuple(segment(*p) for p in parts if p[0]), up


def _shape(
  *,
  height: int = 480,
  width: int = 832,
  chunk: int = 3,
  history: int = 4,
  heads: int = 12,
  d_c: int = 192,
  d_r: int = 32,
  tokens: int | None = None,
  cache_dtype: str | None = None,
) -> Shape:
  """A shape of Wan: pixels / 8 / 2 tokens a side, head dim 128."""
  grid = shapes.token_grid(height // 8, width // 8, patch=2)
  frame = tokens or grid.tokens
  return Shape(
    spec=Spec(
      queries=chunk * frame,
      keys=(history + chunk) * frame,
      heads=heads,
      content_latent=d_c,
      rope=d_r,
      content=128 - d_r,
      value=128,
      eight_bit_keys=history * frame if cache_dtype else 0,
    ),
    history_frames=history,
    chunk_frames=chunk,
    frame_tokens=frame,
    cache_dtype=cache_dtype,
  )


# Sink 1 and local 6 store four frames beside a chunk of three, six beside one.
SHAPES: dict[str, Shape] = {
  "480p": _shape(),
  "720p": _shape(height=720, width=1280),
  "480p_framewise": _shape(chunk=1, history=6),
  "480p_14b": _shape(heads=40, d_c=640),
  "480p_first_chunk": _shape(history=0),
  # Few queries, where absorbed is cheaper: a small picture, frame by frame.
  "few_queries": _shape(chunk=1, history=40, tokens=64),
  "480p_int8": _shape(cache_dtype="int8"),
  "480p_float8": _shape(cache_dtype="float8_e4m3fn"),
  **{
    f"few_queries_{name}": _shape(
      chunk=1, history=40, tokens=64, cache_dtype=dtype
    )
    for name, dtype in (("int8", "int8"), ("float8", "float8_e4m3fn"))
  },
  **{f"480p_dc{d_c}": _shape(d_c=d_c) for d_c in (64, 128, 256, 384, 512)},
  **{f"480p_split{128 - r}_{r}": _shape(d_r=r) for r in (16, 64, 96)},
}


def spec_of(queries: Queries, keys: Sequence[Keys], up: UpProjections) -> Spec:
  """Reads the sizes of a call from its arrays."""
  _, length, heads, content = queries.content.shape
  return Spec(
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
