"""A complete small video model: words, DiT and pixel codec.

`config` is the plain dict that lies beside every checkpoint, so a model can be
built and loaded without the file that trained it.
"""

import dataclasses
import os
import pathlib
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from videomla_jax.models import cache
from videomla_jax.models import codec
from videomla_jax.models import wan
from videomla_jax.small_world import text
from videomla_jax.storage import model_folder
from videomla_jax.storage import plain_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoModelConfig(plain_config.PlainConfig):
  """What a checkpoint says about its model.

  Attributes:
    size: Name in `wan.SIZES`.
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
  window: cache.Window
  d_c: int | None = None
  d_rope: int | None = None

  def __post_init__(self):
    if self.size not in wan.SIZES:
      raise ValueError(
        f"model.size={self.size!r} is unknown; use one of {sorted(wan.SIZES)}."
      )

  @property
  def network(self) -> wan.WanConfig:
    """Sizes of the DiT."""
    own = dict(d_c=self.d_c, d_rope=self.d_rope)
    sizes = {name: size for name, size in own.items() if size is not None}
    return wan.SIZES[self.size](kind=self.kind, **sizes)


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
    self.codec = codec.PixelCodec()
    self.text = text.WordEncoder(config.vocabulary, network.text_dim, rngs=rngs)
    self.dit = wan.WanDiT(network, rngs=rngs)

  def encode_text(self, tokens: Int[Array, "B M"]) -> Float[Array, "B M E"]:
    """Text embeddings of word ids; all padding is the unconditional prompt."""
    return self.text(tokens)

  def latent_shape(self) -> tuple[int, int, int]:
    """H, W, C of one latent frame."""
    config = self.config
    return config.latent_height, config.latent_width, self.codec.channels


SHIPPED = "shipped:"


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
