"""Sizes of the Wan DiT, published ones by name."""

import dataclasses
from typing import Any

from videomla_jax.models import attention

MAX_TIMESTEP = 1000.0  # what the network is told at pure noise; 0 is clean


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanConfig:
  """Sizes of the network; published ones come from the constructors.

  Attributes:
    attention: Self-attention; holds the width E and the heads N.
    num_layers: Blocks.
    ffn_width: F.
    channels: Latent channels C, in and out.
    patch: Side of a square spatial patch in latent pixels.
    freq_dim: Channels of the sinusoidal time embedding.
    text_dim: Channels of the text encoder's output.
    text_tokens: M, text tokens, padding included.
    learned_grid: Token rows and columns of a learned position embedding; None
      (Wan) leaves position to RoPE and fits every frame size.
    dtype: Of the matrix products; master weights are float32.
    remat: Recompute each block in the backward pass.
    scan_blocks: One compiled block for all layers; False unrolls them, which
      compiles longer and runs faster on a CPU.
  """

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
  remat: bool = False
  scan_blocks: bool = True

  @property
  def width(self) -> int:
    """E, the model width."""
    return self.attention.width

  @classmethod
  def from_dict(cls, config: dict[str, Any]) -> "WanConfig":
    """Reads the dict that `to_dict` made.

    Raises:
      ValueError: If a field is missing or unknown.
    """
    values = dict(config)
    try:
      sizes = attention.AttentionConfig(**values.pop("attention"))
      if values.get("learned_grid") is not None:
        values["learned_grid"] = tuple(values["learned_grid"])
      return cls(attention=sizes, **values)
    except (KeyError, TypeError) as error:
      raise ValueError(
        f"DiT config does not fit this version ({error}); convert it again."
      ) from error

  def to_dict(self) -> dict[str, Any]:
    """Plain JSON values."""
    return dataclasses.asdict(self)


def wan_1p3b(*, kind="latent", **kwargs) -> WanConfig:
  """Wan2.1-T2V-1.3B; with dense attention 1,418,996,800 parameters."""
  sizes = attention.AttentionConfig(
    kind=kind,
    width=1536,
    num_heads=12,
    **{k: kwargs.pop(k) for k in ("d_c", "d_rope", "d_q") if k in kwargs},
  )
  return WanConfig(attention=sizes, num_layers=30, ffn_width=8960, **kwargs)


def wan_14b(*, kind="dense", **kwargs) -> WanConfig:
  """Wan2.1-T2V-14B, the teacher."""
  sizes = attention.AttentionConfig(
    kind=kind, width=5120, num_heads=40, d_c=640, d_q=2560
  )
  return WanConfig(attention=sizes, num_layers=40, ffn_width=13824, **kwargs)


def small(
  *, kind="latent", d_c: int = 16, d_rope: int = 8, **kwargs
) -> WanConfig:
  """The small world's network; d_c, d_q, d_r in the paper's proportions."""
  sizes = attention.AttentionConfig(
    kind=kind, width=128, num_heads=4, d_c=d_c, d_rope=d_rope, d_q=64
  )
  values = dict(
    num_layers=4,
    ffn_width=256,
    freq_dim=64,
    text_dim=64,
    text_tokens=4,
    learned_grid=(3, 3),
    dtype="float32",
    scan_blocks=False,
  )
  return WanConfig(attention=sizes, **(values | kwargs))


def tiny(*, kind="latent", **kwargs) -> WanConfig:
  """Wan with every dimension small, to try the machinery in seconds.

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


SIZES = {"wan_1p3b": wan_1p3b, "wan_14b": wan_14b, "small": small}
