"""Which networks a command opens, as its config names them."""

import dataclasses


# Configs call this group `parts`.
@dataclasses.dataclass(frozen=True, kw_only=True)
class Folders:
  """Folders of a converted release, where they do not lie in its checkpoint.

  Attributes:
    dit: The network; an empty name is `CHECKPOINT/dit`, and so on.
    vae: The VAE.
    umt5: The text encoder.
    tokenizer: The tokenizer of the text encoder.
  """

  dit: str = ""
  vae: str = ""
  umt5: str = ""
  tokenizer: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
  """Which networks to open, for which size of video, at which precision.

  Attributes:
    checkpoint: A folder of `train` or `convert`, `shipped:NAME` or
      `random:NAME`.
    parts: Folders of a converted release that lie elsewhere.
    embeddings: File of `embed` that replaces the text encoder, or empty.
    height: Pixel rows; 0 is the usual size of the release. Small models have
      their own and ignore it.
    width: Pixel columns, likewise.
    half_weights: Whether kernels are held in bfloat16 only: half the memory.
    vae_tile: Side of a decoder's tile in latent pixels; 0 is the whole frame.
    vae_dtype: Number format in which the VAE computes.
    seed: Seed of the weights of `random:NAME`.
  """

  checkpoint: str
  parts: Folders = Folders()
  embeddings: str = ""
  height: int = 0
  width: int = 0
  half_weights: bool = False
  vae_tile: int = 0
  vae_dtype: str = "float32"
  seed: int = 0
