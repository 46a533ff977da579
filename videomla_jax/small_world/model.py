"""A complete small video model: words, DiT and pixel codec.

The codec moves pixels into channels and has no parameters, so that everything
there is to learn lies in the DiT and in one vector per word.

`config` is the plain dict that lies beside every checkpoint, so a model can be
built and loaded without the file that trained it.
"""

import dataclasses
import os
import pathlib
from typing import Any

from einops import rearrange
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.small_world import prompts
from videomla_jax.storage import model_folder
from videomla_jax.storage import plain_config

SHIPPED = "shipped:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoModelConfig(plain_config.PlainConfig):
  """What a checkpoint says about its model.

  Attributes:
    size: Name in `wan_config.SIZES`.
    kind: "latent" or "dense" self-attention.
    vocabulary: Word ids, padding included.
    latent_height: Latent rows of the trained frames.
    latent_width: Latent columns of the trained frames.
    fps: Latent frames per second.
    shift: Warp of the noise schedule in training.
    window: Sink, local and chunk frames of training.
    d_c: Content latent; None is the size's own.
    d_rope: Positional key; None is the size's own.
  """

  remedy = "retrain or use the version that wrote the checkpoint"

  size: str
  kind: str
  vocabulary: int
  latent_height: int
  latent_width: int
  fps: float
  shift: float
  window: window_lib.Window
  d_c: int | None = None
  d_rope: int | None = None

  def __post_init__(self):
    if self.size not in wan_config.SIZES:
      raise ValueError(
        f"model.size={self.size!r} is unknown; use one of "
        f"{sorted(wan_config.SIZES)}."
      )

  @property
  def network(self) -> wan_config.WanConfig:
    """Sizes of the DiT."""
    own = dict(d_c=self.d_c, d_rope=self.d_rope)
    sizes = {name: size for name, size in own.items() if size is not None}
    return wan_config.SIZES[self.size](kind=self.kind, **sizes)


class WordEncoder(nnx.Module):
  """Embeds word ids; padding gives exact zeros, as Wan's text padding does."""

  def __init__(self, vocabulary: int, features: int, *, rngs: nnx.Rngs):
    shape = (vocabulary, features)
    self.table = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))

  def __call__(self, tokens: Int[Array, "B M"]) -> Float[Array, "B M E"]:
    """Looks the words up; a product with one-hot rows has a cheap gradient."""
    one_hot = jax.nn.one_hot(tokens, self.table.shape[0], dtype=jnp.float32)
    known = (tokens != prompts.PADDING)[..., None]
    return jnp.where(known, one_hot @ self.table[...], 0.0)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelCodec:
  """Space to depth: a square of pixels becomes the channels of a latent pixel.

  Attributes:
    block: Side of the square.
    pixel_channels: 1 (grey) or 3.
  """

  block: int = 4
  pixel_channels: int = 1
  temporal_stride: int = 1

  @property
  def spatial_stride(self) -> int:
    """Pixels per latent pixel."""
    return self.block

  @property
  def channels(self) -> int:
    """Latent channels C."""
    return self.block**2 * self.pixel_channels

  def encode(
    self, video: UInt8[Array, "B T h w c"]
  ) -> Float[Array, "B T H W C"]:
    """Pixels 0..255 to latents in [-1, 1]."""
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
    """Latents to pixels in [0, 1], clipped."""
    pixels = rearrange(
      latents,
      "B T H W (p q c) -> B T (H p) (W q) c",
      p=self.block,
      q=self.block,
      c=self.pixel_channels,
    )
    return jnp.clip(0.5 * pixels + 0.5, 0, 1)

  def start(self, batch: int, height: int, width: int) -> tuple[()]:
    """No state: frames are independent."""
    del batch, height, width
    return ()

  def decode_chunk(
    self, latents: Float[Array, "B T H W C"], state: tuple[()]
  ) -> tuple[Float[Array, "B T h w c"], tuple[()]]:
    """As `decode`."""
    return self.decode(latents), state


class VideoModel(nnx.Module):
  """Words to latents to pixels.

  Attributes:
    text: Word encoder, trained with the DiT.
    dit: The network.
    codec: Pixels to latents and back; has no parameters.
  """

  def __init__(self, config: VideoModelConfig, *, rngs: nnx.Rngs):
    network = config.network
    self.config = config
    self.codec = PixelCodec()
    self.text = WordEncoder(config.vocabulary, network.text_dim, rngs=rngs)
    self.dit = wan.WanDiT(network, rngs=rngs)

  def encode_text(self, tokens: Int[Array, "B M"]) -> Float[Array, "B M E"]:
    """Text embeddings of word ids; all padding is the unconditional prompt."""
    return self.text(tokens)

  def latent_shape(self) -> tuple[int, int, int]:
    """H, W, C of one latent frame."""
    config = self.config
    return config.latent_height, config.latent_width, self.codec.channels


def checkpoint_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """Resolves `shipped:NAME` to a model inside the package.

  Raises:
    ValueError: If no such model ships.
  """
  name = str(path)
  if not name.startswith(SHIPPED):
    return pathlib.Path(path)
  folder = pathlib.Path(__file__).parent.parent / "checkpoints"
  shipped = sorted(p.name for p in folder.glob("*") if p.is_dir())
  if name.removeprefix(SHIPPED) not in shipped:
    raise ValueError(
      f"checkpoint={name!r} does not exist; shipped are "
      f"{[SHIPPED + s for s in shipped]}."
    )
  return folder / name.removeprefix(SHIPPED)


def is_model(path: str | os.PathLike[str]) -> bool:
  """Says whether a folder holds a small model, words included."""
  if not (pathlib.Path(path) / model_folder.CONFIG).is_file():
    return False
  return "model" in model_folder.read_config(path)


def load(path: str | os.PathLike[str]) -> VideoModel:
  """Loads a shipped or trained model.

  Args:
    path: Directory written by `save`, or `shipped:NAME`.

  Raises:
    ValueError: If the directory is missing, damaged or of another model.
  """
  arrays, config = model_folder.load_model_state(checkpoint_path(path))
  if "model" not in config:
    raise ValueError(
      f"checkpoint={str(path)!r} has no model config; give the folder of a "
      "video model."
    )
  model_config = VideoModelConfig.from_dict(config["model"])
  model = nnx.eval_shape(lambda: VideoModel(model_config, rngs=nnx.Rngs(0)))
  model_folder.update_model(model, arrays)
  return model


def save(path: str | os.PathLike[str], model: VideoModel, **about: Any) -> None:
  """Writes a model with its config.

  Args:
    path: Directory to write or replace.
    model: The model, usually EMA weights.
    **about: More JSON values to keep: training config, command, figures.
  """
  config = {"model": model.config.to_dict(), **about}
  model_folder.save_model(path, model, config)
