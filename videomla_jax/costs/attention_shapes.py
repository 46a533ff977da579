"""The calls that Wan really makes: what is tested, compiled and timed."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from videomla_jax import shapes
from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """One call as the rollout makes it.

  Attributes:
    sizes: Queries, keys and widths of the call.
    history_frames: Latent frames in the ring, the sink included.
    chunk_frames: Latent frames of the chunk that is denoised.
    frame_tokens: P, tokens of a latent frame.
    batch: Rows of the batch.
    cache_dtype: Eight-bit dtype of the ring's latents; None stores them like
      the rest of the call.
  """

  sizes: forms.Sizes
  history_frames: int
  chunk_frames: int
  frame_tokens: int
  batch: int = 1
  cache_dtype: str | None = None

  def arguments(
    self, dtype: DTypeLike
  ) -> tuple[types.Queries, tuple[types.Keys, ...], types.UpProjections]:
    """Returns abstract arguments of `api.latent_attention`.

    Args:
      dtype: Type of all arrays but the flags and eight-bit latents.
    """
    return jax.eval_shape(lambda: self._zeros(dtype))

  def _zeros(
    self, dtype: DTypeLike
  ) -> tuple[types.Queries, tuple[types.Keys, ...], types.UpProjections]:
    s, b = self.sizes, self.batch

    def segment(frames: int, stored: str | None) -> types.Keys:
      keys = frames * self.frame_tokens
      content = jnp.zeros((b, keys, s.content_latent), dtype)
      rope = jnp.zeros((b, keys, s.rope), dtype)
      valid = jnp.ones((b, frames), bool)
      if stored is not None:
        eight_bits = quantise.quantise(content, dtype=stored)
        return types.Keys(eight_bits, rope, valid)
      return types.Keys(content, rope, valid)

    queries = types.Queries(
      jnp.zeros((b, s.queries, s.heads, s.content), dtype),
      jnp.zeros((b, s.queries, s.heads, s.rope), dtype),
    )
    up = types.UpProjections(
      jnp.zeros((s.content_latent, s.heads, s.content), dtype),
      jnp.zeros((s.content_latent, s.heads, s.value), dtype),
    )
    segments = (
      (self.history_frames, self.cache_dtype),
      (self.chunk_frames, None),
    )
    return queries, tuple(segment(*x) for x in segments if x[0]), up


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
  """Makes a shape of Wan, whose VAE divides by 8 and whose patch by 2.

  Args:
    height: Pixel rows.
    width: Pixel columns.
    chunk: Latent frames of the chunk.
    history: Latent frames in the ring.
    heads: N, of 128 channels each.
    d_c: Width of the content latent.
    d_r: Width of the positional key.
    tokens: Tokens of a frame, where they do not follow from the pixels.
    cache_dtype: Eight-bit dtype of the ring's latents.
  """
  grid = shapes.token_grid(height // 8, width // 8, patch=2)
  frame = tokens or grid.tokens
  return Shape(
    sizes=forms.Sizes(
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


# A sink of 1 and a local window of 6 keep four frames beside a chunk of three,
# and six beside a chunk of one.
SHAPES: dict[str, Shape] = {
  "480p": _shape(),
  "720p": _shape(height=720, width=1280),
  "480p_framewise": _shape(chunk=1, history=6),
  "480p_14b": _shape(heads=40, d_c=640),
  "480p_first_chunk": _shape(history=0),
  # With few queries the absorbed form is cheaper: a small picture, made frame
  # by frame.
  "few_queries": _shape(chunk=1, history=40, tokens=64),
  "480p_int8": _shape(cache_dtype="int8"),
  "480p_float8": _shape(cache_dtype="float8_e4m3fn"),
  **{
    f"few_queries_{name}": _shape(
      chunk=1, history=40, tokens=64, cache_dtype=dtype
    )
    for name, dtype in (("int8", "int8"), ("float8", "float8_e4m3fn"))
  },
  # These are the ablations of VideoMLA: the width of the latent, and how a head
  # is split.
  **{f"480p_dc{d_c}": _shape(d_c=d_c) for d_c in (64, 128, 256, 384, 512)},
  **{f"480p_split{128 - r}_{r}": _shape(d_r=r) for r in (16, 64, 96)},
}
