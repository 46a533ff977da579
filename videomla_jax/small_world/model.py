"""A complete small video model: words, DiT and codec.

The codec moves pixels into channels and has no parameters, or is a VAE that was
trained before and lies in the folder `vae` of the model's own. So everything
there is to learn lies in the DiT and in one vector per word.

`config` is the plain dict that lies beside every checkpoint, so a model can be
built and loaded without the file that trained it.
"""

import dataclasses
import os
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.small_world import codecs
from videomla_jax.small_world import prompts
from videomla_jax.small_world import worlds
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
    fps: Pixel frames per second.
    shift: Warp of the noise schedule in training.
    window: Sink, local and chunk frames in training.
    d_c: Channels of the content latent; None takes those of the size.
    d_rope: Channels of the positional key; None takes those of the size.
    rope_ladder: Frequencies of the positional key, see `AttentionConfig`.
    world: Key of `worlds.WORLDS`; older folders, which have none, are of
      moving digits.
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
  world: str = worlds.MOVING_DIGITS

  def __post_init__(self) -> None:
    if self.size not in wan_config.SIZES:
      raise ValueError(
        f"model.size={self.size!r} is unknown; use one of "
        f"{sorted(wan_config.SIZES)}."
      )
    if self.world not in worlds.WORLDS:
      raise ValueError(
        f"model.world={self.world!r:.80} is unknown; use one of "
        f"{sorted(worlds.WORLDS)}."
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
    if self.network.text_tokens != self.of_world.num_tokens:
      raise ValueError(
        f"model.size={self.size!r} reads {self.network.text_tokens} words but "
        f"prompts of model.world={self.world!r} have "
        f"{self.of_world.num_tokens}; use the size of that world."
      )

  @property
  def of_world(self) -> worlds.World:
    """What the model is made for."""
    return worlds.WORLDS[self.world]

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


def _codec(world: worlds.World, codec: codecs.Codec | None) -> codecs.Codec:
  """Returns the codec of a model, which must fit its world."""
  if world.codec is not None:
    return world.codec
  if not isinstance(codec, codecs.StoredVae):
    raise ValueError("a model of this world needs a VAE; give its folder.")
  world.check_vae(codec, name="vae")
  return codec


class VideoModel(nnx.Module):
  """Holds all that turns words into a video.

  Attributes:
    text: Word encoder, trained with the DiT.
    dit: The network that predicts velocities.
    codec: Turns pixels into latents and back; it has no parameters here.
  """

  def __init__(
    self,
    config: VideoModelConfig,
    *,
    rngs: nnx.Rngs,
    codec: codecs.Codec | None = None,
    **changes: str | bool | int,
  ) -> None:
    """Makes a model with random weights.

    Args:
      config: Config of the model.
      rngs: Source of the weights.
      codec: VAE of a model whose world has no codec.
      **changes: Fields of `WanConfig` to replace that change no weights.

    Raises:
      ValueError: If the codec is missing or does not fit.
    """
    world = config.of_world
    # CPUs are slow in bfloat16. This is asked here, and not where a config is
    # read: processes of a cluster must not have looked for devices before.
    if world.halves and jax.default_backend() != "cpu":
      changes = {"dtype": "bfloat16"} | changes
    network = dataclasses.replace(config.network, **changes)
    self.config = config
    self.codec: codecs.Codec = _codec(world, codec)
    self.text = WordEncoder(config.vocabulary, network.text_dim, rngs=rngs)
    self.dit = wan.WanDiT(network, rngs=rngs)

  def encode_text(self, tokens: Int[Array, "B M"]) -> Float[Array, "B M E"]:
    """Returns text embeddings; padding alone is the unconditional prompt.

    Args:
      tokens: Word ids, see `worlds.World.tokenize_batch`.
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


def load(
  path: str | os.PathLike[str], **changes: str | bool | int
) -> VideoModel:
  """Loads a shipped or trained model, and finds its VAE if it has one.

  Args:
    path: Directory written by `save`, or `shipped:NAME`.
    **changes: Fields of `WanConfig` to replace that change no weights.

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
  world = model_config.of_world
  if model_config.vocabulary < world.vocabulary:
    raise ValueError(
      f"checkpoint={str(path)!r} knows {model_config.vocabulary} words but the "
      f"prompts have {world.vocabulary}; {model_config.remedy}."
    )
  codec = world.codec or codecs.open_vae(folder / codecs.VAE_FOLDER)
  # Only shapes are needed, since the arrays are those of the file.
  model = nnx.eval_shape(
    lambda: VideoModel(model_config, rngs=nnx.Rngs(0), codec=codec, **changes)
  )
  # This checks every byte of the VAE, too.
  arrays, _ = model_folder.load_model_state(folder, model=model)
  model_folder.update_model(model, arrays)
  return model


def save(path: str | os.PathLike[str], model: VideoModel, **about: Any) -> None:
  """Writes a model with its config, and with a copy of its VAE if it has one.

  Args:
    path: Directory to write or replace.
    model: The model, usually EMA weights.
    **about: More JSON values to keep: training config, command, figures.

  Raises:
    ValueError: If weights are not finite, or the VAE is not what it was.
  """
  config = {"model": model.config.to_dict(), **about}
  model_folder.save_model(
    path,
    model,
    config,
    further=model.codec.copy_into,
  )
