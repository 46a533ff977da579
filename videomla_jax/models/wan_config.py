"""Sizes of the Wan DiT, published ones by name."""

import dataclasses
from typing import Any

from videomla_jax.models import attention
from videomla_jax.ops import quantise
from videomla_jax.storage import plain_config

MAX_TIMESTEP = 1000.0  # what the network is told at pure noise; 0 is clean

# Fields of `AttentionConfig` that a size may change.
_SIZES = ("d_c", "d_rope", "d_q", "rope_ladder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanConfig(plain_config.PlainConfig):
  """Sizes of the network; functions below return the published ones.

  Attributes:
    attention: Sizes of self-attention, among them the width E and the heads N.
    num_layers: Number of blocks.
    ffn_width: Hidden channels F of the feed-forward.
    channels: Latent channels C, in and out.
    patch: Side of a square spatial patch in latent pixels.
    freq_dim: Channels of the sinusoidal time embedding.
    text_dim: Channels of the text encoder's output.
    text_tokens: Text tokens M, padding included.
    learned_grid: Token rows and columns of a learned position embedding; None
      (Wan) leaves position to RoPE and fits every frame size.
    dtype: Dtype of the matrix products; master weights are float32.
    products: A name in `quantise.PRODUCTS`: "float8_per_token",
      "float8_per_tensor" and "float8_constant" hold the projections of all
      blocks in float8_e4m3fn and multiply in it, with inputs that have a scale
      per token, one for all tokens of a chunk, or a constant one. Not for
      training.
    remat: Whether each block is computed again in the backward pass.
    scan_blocks: Whether one compiled block serves all layers; False unrolls
      them, which compiles longer and runs faster on a CPU.
    spare_memory: Whether passes without gradients hold as little as they can:
      the feed-forward works in slices, sums are written before they are read,
      and every pass makes the keys of the text anew. False moves fewer bytes,
      docs/kernels.md.
  """

  title = "DiT config"

  attention: attention.AttentionConfig
  num_layers: int
  ffn_width: int
  channels: int = 16
  patch: int = 2
  freq_dim: int = 256
  text_dim: int = 4096
  text_tokens: int = 512
  learned_grid: tuple[int, int] | None = None
  dtype: str = "bfloat16"
  products: str = ""
  remat: bool = False
  scan_blocks: bool = True
  spare_memory: bool = True

  def __post_init__(self) -> None:
    sizes = ("ffn_width", "channels", "freq_dim", "text_dim", "text_tokens")
    plain_config.check_range(
      self,
      num_layers=(1, 512),
      patch=(1, 64),
      learned_grid=(1, 2**12),
      **dict.fromkeys(sizes, (1, 2**20)),
    )
    plain_config.check_dtype(self, "dtype")
    if self.products not in quantise.PRODUCTS:
      raise ValueError(
        f"products={self.products!r:.80} is unknown; use one of "
        f"{quantise.PRODUCTS}, where '' multiplies in {self.dtype}."
      )

  @property
  def width(self) -> int:
    """Channels E of a token, the model width."""
    return self.attention.width


def wan_1p3b(*, kind: str = "latent", **kwargs: Any) -> WanConfig:
  """Returns Wan2.1-T2V-1.3B; with dense attention 1,418,996,800 parameters."""
  sizes = attention.AttentionConfig(
    kind=kind,
    width=1536,
    num_heads=12,
    **{k: kwargs.pop(k) for k in _SIZES if k in kwargs},
  )
  values = dict(num_layers=30, ffn_width=8960)
  return WanConfig(attention=sizes, **(values | kwargs))


def wan_14b(*, kind: str = "dense", **kwargs: Any) -> WanConfig:
  """Returns Wan2.1-T2V-14B, the teacher of released students."""
  values = dict(d_c=640, d_q=2560)
  values |= {k: kwargs.pop(k) for k in _SIZES if k in kwargs}
  sizes = attention.AttentionConfig(
    kind=kind, width=5120, num_heads=40, **values
  )
  values = dict(num_layers=40, ffn_width=13824)
  return WanConfig(attention=sizes, **(values | kwargs))


def _heads_of_32(
  *, kind: str, width: int, d_c: int, d_rope: int, rope_ladder: str
) -> attention.AttentionConfig:
  """Returns the attention of small networks, with queries of half the width."""
  return attention.AttentionConfig(
    kind=kind,
    width=width,
    num_heads=width // 32,
    d_c=d_c,
    d_rope=d_rope,
    d_q=width // 2,
    rope_ladder=rope_ladder,
  )


def small(
  *,
  kind: str = "latent",
  d_c: int = 16,
  d_rope: int = 8,
  rope_ladder: str = "wan",
  width: int = 128,
  **kwargs: Any,
) -> WanConfig:
  """Returns the small world's network, latents in the paper's proportions."""
  sizes = _heads_of_32(
    kind=kind, width=width, d_c=d_c, d_rope=d_rope, rope_ladder=rope_ladder
  )
  # Unrolled float32 blocks run fastest on a CPU, where this network lives.
  values = dict(
    num_layers=4,
    ffn_width=2 * width,
    freq_dim=64,
    text_dim=64,
    text_tokens=4,
    learned_grid=(3, 3),
    dtype="float32",
    scan_blocks=False,
  )
  return WanConfig(attention=sizes, **(values | kwargs))


def small_narrow(**kwargs: Any) -> WanConfig:
  """Returns the small world's network with half of the width and latent."""
  return small(**(dict(width=64, d_c=8) | kwargs))


def small_shallow(**kwargs: Any) -> WanConfig:
  """Returns the small world's network with half of the layers."""
  return small(**(dict(num_layers=2) | kwargs))


def world(
  *,
  kind: str = "latent",
  d_c: int = 24,
  d_rope: int = 8,
  rope_ladder: str = "wan",
  width: int = 192,
  **kwargs: Any,
) -> WanConfig:
  """Returns the colour world's network, latents in the same proportions."""
  sizes = _heads_of_32(
    kind=kind, width=width, d_c=d_c, d_rope=d_rope, rope_ladder=rope_ladder
  )
  values = dict(
    num_layers=8,
    ffn_width=3 * width,
    freq_dim=64,
    text_dim=128,
    text_tokens=13,
    learned_grid=(4, 4),
    dtype="float32",  # small_world.model takes bfloat16 on a GPU
  )
  return WanConfig(attention=sizes, **(values | kwargs))


def tiny(*, kind: str = "latent", **kwargs: Any) -> WanConfig:
  """Returns Wan with every dimension small, to try everything in seconds.

  Latents and text have the sizes of `vae.tiny_vae` and `umt5.tiny_umt5`.
  """
  sizes = attention.AttentionConfig(
    kind=kind, width=64, num_heads=4, d_c=16, d_rope=8, d_q=32
  )
  values = dict(
    num_layers=2,
    ffn_width=128,
    channels=4,
    freq_dim=32,
    text_dim=32,
    dtype="float32",
  )
  return WanConfig(attention=sizes, **(values | kwargs))


# Sizes that configs name.
SIZES = {
  "wan_1p3b": wan_1p3b,
  "wan_14b": wan_14b,
  "small": small,
  "small_narrow": small_narrow,
  "small_shallow": small_shallow,
  "world": world,
}
