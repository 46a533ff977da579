"""Where models come from, and how one is opened by its name.

  shipped:NAME, or a folder of `train`    a small model: words, codec or VAE
  a folder of `convert`                   Wan: umt5/, dit/, vae/, tokenizer/
  random:NAME                             random weights, to try the machinery

Opening checks that all files exist and loads nothing large.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
from typing import Protocol, runtime_checkable

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float

from videomla_jax.generation import networks as networks_lib
from videomla_jax.generation import pipeline
from videomla_jax.generation import unused
from videomla_jax.generation import wan_source
from videomla_jax.models import released
from videomla_jax.models import vae
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import worlds
from videomla_jax.storage import model_folder

# Stages of training after which a few steps are enough, for folders that do not
# say it themselves.
_DISTILLED = ("consistency", "dmd")


@runtime_checkable
class Source(Protocol):
  """A model before it is loaded: what it makes, and how it is sampled."""

  @property
  def pixels(self) -> tuple[int, int]:
    """Height and width of the video."""

  @property
  def pixel_channels(self) -> int:
    """Channels of a pixel, 1 (grey) or 3 (RGB)."""

  @property
  def fps(self) -> float | int:
    """Pixel frames per second at which a video plays."""

  @property
  def shift(self) -> float | int:
    """Warp of the noise schedule that the model was trained with."""

  @property
  def window(self) -> window_lib.Window:
    """Window that the model was trained with, as far as it is known."""

  @property
  def distilled(self) -> bool:
    """Whether it was trained to need a few steps and no guidance."""

  @property
  def decoder(self) -> str:
    """Name of what turns latents into pixels: "wan", "tiny" or "patches"."""

  def other_decoders(self) -> Mapping[str, vae.Decoder]:
    """Returns decoders that may be chosen instead, without their weights."""

  def check(self, prompts: Sequence[str]) -> None:
    """Raises `ValueError` for prompts that the model cannot take."""

  def check_negative(self, negative: str) -> None:
    """Raises `ValueError` for a negative prompt that would change nothing."""

  def cut(self, prompts: Sequence[str]) -> dict[str, int]:
    """Returns the tokens of prompts that have more than the model takes."""

  def embed(
    self, prompts: Sequence[str], *, negative: str | None
  ) -> Float[Array, "R M E"]:
    """Embeds prompts, then once per prompt the negative one, if any."""

  def load(self) -> pipeline.Pipeline:
    """Loads the network and the codec, and keeps neither."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallSource:
  """A model of a small world, text encoder included.

  Attributes:
    model: The networks, already in memory.
    distilled: Whether it was trained to need a few steps and no guidance.
  """

  model: model_lib.VideoModel
  distilled: bool = False

  @property
  def pixels(self) -> tuple[int, int]:
    """Height and width that the model was trained on."""
    height, width, _ = self.model.latent_shape()
    stride = self.model.codec.spatial_stride
    return height * stride, width * stride

  @property
  def pixel_channels(self) -> int:
    """Channels of a pixel: 1 of moving digits, 3 of the colour world."""
    return self.model.codec.pixel_channels

  @property
  def fps(self) -> float | int:
    """Pixel frames per second that the model was trained on."""
    return self.model.config.fps

  @property
  def shift(self) -> float | int:
    """Warp of the noise schedule that the model was trained with."""
    return self.model.config.shift

  @property
  def window(self) -> window_lib.Window:
    """Window that the model was trained with."""
    return self.model.config.window

  @property
  def decoder(self) -> str:
    """Name of the VAE, or of the codec that moves pixels to channels."""
    return "patches" if self._world.codec is not None else "wan"

  @property
  def _world(self) -> worlds.World:
    return self.model.config.of_world

  def other_decoders(self) -> Mapping[str, vae.Decoder]:
    """Returns nothing: small models have one codec."""
    return {}

  def check(self, prompts: Sequence[str]) -> None:
    """Raises `ValueError` unless the model's world has such prompts."""
    self._world.tokenize_batch(prompts)

  def check_negative(self, negative: str) -> None:
    """Raises `ValueError` for any words: guidance runs against padding."""
    unused.refuse(
      dict(negative_prompt=negative),
      why="on a small model, whose guidance steers away from no prompt",
    )

  def cut(self, prompts: Sequence[str]) -> dict[str, int]:
    """Returns nothing: a model takes all words that a prompt may have."""
    del prompts
    return {}

  def embed(
    self, prompts: Sequence[str], *, negative: str | None
  ) -> Float[Array, "R M E"]:
    """Looks the words up; the negative prompt is padding, whatever it says."""
    tokens = jnp.asarray(self._world.tokenize_batch(prompts))
    if negative is not None:
      # Training drops whole prompts to padding: that is "unconditional" here.
      tokens = jnp.concatenate([tokens, jnp.zeros_like(tokens)])
    return self.model.encode_text(tokens)

  def load(self) -> pipeline.Pipeline:
    """Gives the network, which is in memory already, and loads a VAE."""
    return pipeline.Pipeline(
      dit=self.model.dit,
      codec=self.model.codec.load(),
      frame=self.model.latent_shape(),
      fps=self.fps,
    )


def open_source(networks: networks_lib.Networks) -> Source:
  """Finds a model by the name of its checkpoint.

  Args:
    networks: What to open.

  Raises:
    ValueError: If it is no model, or files of it are missing.
  """
  source = _as_stored(networks)
  products = networks.products
  if isinstance(source, SmallSource):
    return in_float8(source, products)
  load = source.load_dit
  arranged = wan.with_layers_apart if networks.layers_apart else lambda x: x
  # No name keeps the stack, which is freed while it is taken apart.
  return dataclasses.replace(
    source, load_dit=lambda: arranged(released.with_products(load(), products))
  )


def _as_stored(
  networks: networks_lib.Networks,
) -> SmallSource | wan_source.WanSource:
  """Finds a model by the name of its checkpoint, see `open_source`."""
  name = networks.checkpoint
  if name.startswith(wan_source.RANDOM):
    return wan_source.random_source(networks)
  # A converted release is told by its folders, a small model by its config.
  path = model_lib.checkpoint_path(name)
  found = {p.name for p in path.glob("*")}
  # One of the colour world has a folder of its VAE, too.
  is_release = bool(found & {"dit", "vae"}) and not model_lib.is_model(path)
  if is_release or any(dataclasses.astuple(networks.parts)):
    return wan_source.from_folders(path, networks)
  source = open_small(path)
  unused.refuse_of_releases(networks, pixels=source.pixels)
  return source


def open_small(path: str | os.PathLike[str]) -> SmallSource:
  """Loads a model of the small world; its folder says which stage made it.

  Args:
    path: Model folder, or `shipped:NAME`.

  Raises:
    ValueError: If it is missing or damaged.
  """
  folder = model_lib.checkpoint_path(path)
  model = model_lib.load(folder)
  about = model_folder.read_config(folder)
  # A model that `convert` made has no stage of training.
  training = about.get("training")
  stage = training.get("stage") if isinstance(training, dict) else None
  distilled = bool(about.get("distilled", stage in _DISTILLED))
  return SmallSource(model=model, distilled=distilled)


def in_float8(source: SmallSource, products: str) -> SmallSource:
  """Returns a small model whose network multiplies in float8.

  Args:
    source: A model, which stays as it is.
    products: A name in `quantise.PRODUCTS`; empty changes nothing.
  """
  if not products:
    return source
  model = nnx.merge(*nnx.split(source.model))
  model.dit = released.with_products(model.dit, products)
  return dataclasses.replace(source, model=model)
