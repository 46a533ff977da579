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

SHIPPED = "shipped:"  # marks a name inside the package, not a folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoModelConfig(plain_config.PlainConfig):
  """Describes a model as its checkpoint does.

  Attributes:
    size: Name in `wan_config.SIZES`.
    kind: "latent" or "dense" self-attention.
    vocabulary: Number of word ids, padding included.
    latent_height: Latent rows of the trained frames.
    latent_width: Latent columns of the trained frames.
    fps: Latent frames per second.
    shift: Warp of the noise schedule in training.
    window: Sink, local and chunk frames in training.
    d_c: Channels of the content latent; None takes those of the size.
    d_rope: Channels of the positional key; None takes those of the size.
    rope_ladder: Frequencies of the positional key, see `AttentionConfig`.
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
  rope_ladder: str = "wan"

  def __post_init__(self) -> None:
    if self.size not in wan_config.SIZES:
      raise ValueError(
        f"model.size={self.size!r} is unknown; use one of "
        f"{sorted(wan_config.SIZES)}."
      )
    plain_config.check_range(
      self,
      vocabulary=(1, 2**20),
      latent_height=(1, 2**12),
      latent_width=(1, 2**12),
      fps=(0.1, 240),
      shift=(1e-3, 1e3),
    )
    grid, patch = self.network.learned_grid, self.network.patch
    latent = self.latent_height, self.latent_width
    if grid is not None and latent != (grid[0] * patch, grid[1] * patch):
      raise ValueError(
        f"latent_height and latent_width are {latent} but size={self.size!r} "
        f"has a grid of {grid} tokens of {patch} x {patch}."
      )

  @property
  def network(self) -> wan_config.WanConfig:
    """Config of the DiT that has this size and kind."""
    changes = dict(d_c=self.d_c, d_rope=self.d_rope)
    sizes = {name: size for name, size in changes.items() if size is not None}
    return wan_config.SIZES[self.size](
      kind=self.kind, rope_ladder=self.rope_ladder, **sizes
    )


class WordEncoder(nnx.Module):
  """Gives each word a learned vector, and padding exact zeros as Wan does."""

  def __init__(self, vocabulary: int, features: int, *, rngs: nnx.Rngs) -> None:
    shape = (vocabulary, features)
    self.table = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))

  def __call__(self, tokens: Int[Array, "B M"]) -> Float[Array, "B M E"]:
    """Returns the vectors of words.

    Args:
      tokens: Word ids; `prompts.PADDING` is no word.
    """
    # A product with one-hot rows has a cheaper gradient than indexing.
    one_hot = jax.nn.one_hot(tokens, self.table.shape[0], dtype=jnp.float32)
    known = (tokens != prompts.PADDING)[..., None]
    return jnp.where(known, one_hot @ self.table[...], 0.0)


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

  def decode_chunk(
    self, latents: Float[Array, "B T H W C"], state: tuple[()]
  ) -> tuple[Float[Array, "B T h w c"], tuple[()]]:
    """Returns the pixels of the next latents, as `decode` does."""
    return self.decode(latents), state


class VideoModel(nnx.Module):
  """Holds all that turns words into a video.

  Attributes:
    text: Word encoder, trained with the DiT.
    dit: The network that predicts velocities.
    codec: Turns pixels into latents and back; it has no parameters.
  """

  def __init__(self, config: VideoModelConfig, *, rngs: nnx.Rngs) -> None:
    network = config.network
    self.config = config
    self.codec = PixelCodec()
    self.text = WordEncoder(config.vocabulary, network.text_dim, rngs=rngs)
    self.dit = wan.WanDiT(network, rngs=rngs)

  def encode_text(self, tokens: Int[Array, "B M"]) -> Float[Array, "B M E"]:
    """Returns text embeddings; padding alone is the unconditional prompt.

    Args:
      tokens: Word ids, see `prompts.tokenize`.
    """
    return self.text(tokens)

  def latent_shape(self) -> tuple[int, int, int]:
    """Returns rows H, columns W and channels C of one latent frame."""
    config = self.config
    return config.latent_height, config.latent_width, self.codec.channels


def checkpoint_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the folder of a model; `shipped:NAME` is inside the package.

  Args:
    path: Folder, or `shipped:NAME`.

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
  """Says whether a folder holds a small model, words included.

  Args:
    path: Folder, of any content.
  """
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
  folder = checkpoint_path(path)
  config = model_folder.read_config(folder)
  if "model" not in config:
    raise ValueError(
      f"checkpoint={str(path)!r} has no model config; give the folder of a "
      "video model."
    )
  model_config = VideoModelConfig.from_dict(config["model"])
  if model_config.vocabulary < prompts.vocabulary_size():
    raise ValueError(
      f"checkpoint={str(path)!r} knows {model_config.vocabulary} words but the "
      f"prompts have {prompts.vocabulary_size()}; {model_config.remedy}."
    )
  # Only shapes are needed, since the arrays are those of the file.
  model = nnx.eval_shape(lambda: VideoModel(model_config, rngs=nnx.Rngs(0)))
  arrays, _ = model_folder.load_model_state(folder, model=model)
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
