"""Which networks a command opens, as its config names them."""

import dataclasses
from typing import Annotated

from videomla_jax.models import released
from videomla_jax.ops import quantise
from videomla_jax.runtime import config_values

_DTYPES = ("float32", "bfloat16")
_DECODERS = ("", "wan", "tiny")
# Sides of a frame in pixels; the codec of the files takes no larger ones.
MAX_SIDE = 8192

Side = Annotated[int, config_values.Range(0, MAX_SIDE)]


# Configs call this group `parts`.
@dataclasses.dataclass(frozen=True, kw_only=True)
class Folders:
  """Folders of a converted release, where they do not lie in its checkpoint.

  Attributes:
    dit: The network; an empty name is `CHECKPOINT/dit`, and so on.
    vae: The VAE.
    umt5: The text encoder; empty where stored embeddings take its place.
    tokenizer: The tokenizer of the text encoder, likewise.
    tiny_decoder: The tiny decoder, where it is wanted.
  """

  dit: config_values.Path = ""
  vae: config_values.Path = ""
  umt5: config_values.Path = ""
  tokenizer: config_values.Path = ""
  tiny_decoder: config_values.Path = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
  """Which networks to open, for which size of video, at which precision.

  Attributes:
    checkpoint: A folder of `train` or `convert`, `shipped:NAME` or
      `random:NAME`.
    parts: Folders of a converted release that lie elsewhere.
    embeddings: File of `embed` that replaces the text encoder, or empty.
    height: Pixel rows; 0 is the usual size of the release. Small models have
      their own, and refuse another one.
    width: Pixel columns, likewise.
    half_weights: Whether kernels are held in bfloat16 only: half the memory.
    spare_memory: Whether a released network and its VAE take less memory and
      more time, see `WanConfig` and `VaeConfig`.
    layers_apart: Whether each layer of a released network has arrays of its
      own, so that no large weights are copied while it runs. Programs take
      eight times as long to compile for an H100, and 46 times for a B200.
    products: A name in `quantise.PRODUCTS`; those of float8 hold the network's
      blocks in float8 and multiply in it; empty is as the model is stored.
    vae_tile: Side of a decoder's tile in latent pixels; 0 is the whole frame.
    vae_dtype: Number format in which the VAE and the tiny decoder compute.
    decoder: What turns Wan's latents into pixels: "wan" (its VAE) or "tiny";
      empty is the model's own.
    weights_seed: Seed of the weights of `random:NAME`.
  """

  checkpoint: config_values.Path
  parts: Folders = Folders()
  embeddings: config_values.Path = ""
  height: Side = 0
  width: Side = 0
  half_weights: bool = False
  spare_memory: bool = False
  layers_apart: bool = False
  products: str = ""
  vae_tile: Side = 0
  vae_dtype: str = "float32"
  decoder: str = ""
  weights_seed: config_values.Seed = 0

  def __post_init__(self) -> None:
    if not self.checkpoint:
      raise ValueError(
        "checkpoint is empty; name a folder, shipped:NAME or random:NAME."
      )
    # Tiles overlap by four, and must advance.
    if 0 < self.vae_tile < 5:
      raise ValueError(
        f"vae_tile={self.vae_tile} must be at least 5 latent pixels; use 16."
      )
    if self.layers_apart and self.spare_memory:
      raise ValueError(
        "layers_apart=True has no stack of layers, out of which "
        "spare_memory=True cuts slices; leave one of them out."
      )
    if self.products not in quantise.PRODUCTS:
      raise ValueError(
        f"products={self.products!r} is unknown; use one of "
        f"{quantise.PRODUCTS}, where '' is as the model is stored."
      )
    if self.vae_dtype not in _DTYPES:
      raise ValueError(
        f"vae_dtype={self.vae_dtype!r} is unknown; use one of {_DTYPES}."
      )
    if self.decoder not in _DECODERS:
      raise ValueError(
        f"decoder={self.decoder!r} is unknown; use one of {_DECODERS}, where "
        "'' is the model's own."
      )
    if self.parts.tiny_decoder and self.decoder != "tiny":
      raise ValueError(
        f"parts.tiny_decoder={self.parts.tiny_decoder!r} has no effect without "
        "decoder='tiny'; leave it out, or choose that decoder."
      )

  def pixels_like(self, family: released.Family) -> tuple[int, int]:
    """Chooses height and width of a video, and checks them.

    Args:
      family: The release, with its usual size.

    Raises:
      ValueError: If one of them is no multiple of a token's side.
    """
    step = family.pixel_step
    pixels = self.height or family.height, self.width or family.width
    for name, size in zip(("height", "width"), pixels, strict=True):
      if size < step or size % step:
        raise ValueError(
          f"{name}={size} must be a positive multiple of {step}; use "
          f"{max(step, size // step * step)}."
        )
    return pixels
