"""Codecs of small models: pixels to channels, or a VAE that lies beside them.

Neither has arrays that a model would train: the codec of moving digits has no
parameters, and a VAE is loaded where it is needed.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil

from einops import rearrange
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from videomla_jax.models import released
from videomla_jax.models import vae as vae_lib
from videomla_jax.models import vae_coders
from videomla_jax.storage import model_folder
from videomla_jax.storage import ordinary_files

VAE_FOLDER = "vae"  # inside the folder of a model that needs one


# It has no arrays, so a compiled function takes it as a constant.
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelCodec:
  """Makes the channels of a latent pixel from a square of pixels, and back.

  Attributes:
    block: Side of the square in pixels.
    pixel_channels: Number of colours: 1 (grey) or 3.
    temporal_stride: Pixel frames per latent frame.
  """

  block: int = 4
  pixel_channels: int = 1
  temporal_stride: int = 1

  @property
  def spatial_stride(self) -> int:
    """Number of pixels per latent pixel, along one side."""
    return self.block

  @property
  def channels(self) -> int:
    """Number of latent channels C: all values of a square of pixels."""
    return self.block**2 * self.pixel_channels

  def encode(
    self, video: UInt8[Array, "B T h w c"]
  ) -> Float[Array, "B T H W C"]:
    """Returns the latents, in [-1, 1], of pixels 0..255."""
    pixels = video.astype(jnp.float32) / 127.5 - 1
    return rearrange(
      pixels,
      "B T (H p) (W q) c -> B T H W (p q c)",
      p=self.block,
      q=self.block,
    )

  def decode(
    self, latents: Float[Array, "B T H W C"]
  ) -> Float[Array, "B T h w c"]:
    """Returns the pixels of latents, clipped to [0, 1]."""
    pixels = rearrange(
      latents,
      "B T H W (p q c) -> B T (H p) (W q) c",
      p=self.block,
      q=self.block,
      c=self.pixel_channels,
    )
    return jnp.clip(0.5 * pixels + 0.5, 0, 1)

  def start(self, batch: int, height: int, width: int) -> tuple[()]:
    """Returns an empty state, since frames do not depend on each other."""
    del batch, height, width
    return ()

  def load(self) -> "PixelCodec":
    """Returns itself: there is nothing to load."""
    return self

  def copy_into(self, folder: pathlib.Path) -> None:
    """Copies nothing into the folder of a model."""

  def decode_chunk(
    self, latents: Float[Array, "B T H W C"], state: tuple[()]
  ) -> tuple[Float[Array, "B T h w c"], tuple[()]]:
    """Returns the pixels of the next latents, as `decode` does."""
    return self.decode(latents), state


# A path is no part of what it is, so networks from several folders have equal
# structures if their VAEs are equal.
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredVae:
  """A VAE in a model folder, not loaded.

  Attributes:
    folder: The folder, which nothing may change as long as this is in use.
    digest: SHA-256 of its list of digests, which tells it from all others.
    config: Its sizes.
  """

  folder: pathlib.Path = dataclasses.field(compare=False)
  digest: str
  config: vae_coders.VaeConfig

  @property
  def temporal_stride(self) -> int:
    """Number of pixel frames per latent frame after the first."""
    return self.config.temporal_stride

  @property
  def spatial_stride(self) -> int:
    """Number of pixels per latent pixel, along one side."""
    return self.config.spatial_stride

  @property
  def channels(self) -> int:
    """Number of latent channels C."""
    return self.config.channels

  @property
  def pixel_channels(self) -> int:
    """Number of colours: red, green and blue."""
    return 3

  def load(self) -> vae_lib.WanVAE:
    """Loads the network, which computes in float32.

    Raises:
      ValueError: If the folder is missing, damaged or another one than before.
    """
    self._check_unchanged()
    return released.load(self.folder, "wan_vae", dtype="float32")

  def copy_into(self, folder: pathlib.Path) -> None:
    """Copies the VAE into a model folder that is being written.

    Args:
      folder: The model folder.

    Raises:
      ValueError: If the VAE is missing, damaged or another one than before.
    """
    self._check_unchanged()
    copy = folder / VAE_FOLDER
    try:
      shutil.copytree(self.folder, copy)
    except OSError as error:
      raise ValueError(
        f"the VAE {str(self.folder)!r} cannot be copied ({error}); make it "
        "readable and run the same command again."
      ) from error
    model_folder.check_folder(copy)

  def _check_unchanged(self) -> None:
    if open_vae(self.folder).digest != self.digest:
      raise ValueError(
        f"the VAE {str(self.folder)!r} is another one than when this began; "
        "put the old one back and run the same command again."
      )


Codec = PixelCodec | StoredVae


def open_vae(folder: str | os.PathLike[str]) -> StoredVae:
  """Finds a VAE on disk, reading no weights.

  Args:
    folder: Model folder of a VAE, as `train_vae` and `convert` write it.

  Raises:
    ValueError: If there is none.
  """
  folder = pathlib.Path(folder).absolute()
  config = released.config_at(folder)
  if not isinstance(config, vae_coders.VaeConfig):
    raise ValueError(
      f"checkpoint={str(folder)!r} is no VAE; give the folder that train_vae "
      "or convert wrote for one."
    )
  try:
    digests = ordinary_files.read_bytes(
      folder / model_folder.DIGESTS, limit=64 * ordinary_files.MIB
    )
  except ordinary_files.BadFile as error:
    raise ValueError(
      f"checkpoint={str(folder)!r} has a file {model_folder.DIGESTS!r} that "
      f"{error}; train or convert the VAE again."
    ) from error
  digest = hashlib.sha256(digests).hexdigest()
  return StoredVae(folder=folder, digest=digest, config=config)
