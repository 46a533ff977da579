"""Where models come from: shipped and trained small ones, Wan, random ones.

A checkpoint is named by

  shipped:NAME, or a folder of `train`    a small model: words, pixel codec
  a folder of `convert`                   Wan: umt5/, dit/, vae/, tokenizer/
  random:NAME                             random weights, to try the machinery

and opening it loads nothing large.
"""

from collections.abc import Callable
import dataclasses
import os
import pathlib
from typing import Any, Protocol, runtime_checkable

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from videomla_jax.costs import memory
from videomla_jax.data import embeddings
from videomla_jax.generation import pipeline
from videomla_jax.models import codec as codec_lib
from videomla_jax.models import released
from videomla_jax.models import tokenizer as tokenizer_lib
from videomla_jax.models import umt5
from videomla_jax.models import vae
from videomla_jax.models import vae_config
from videomla_jax.models import vae_tiling
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import prompts as prompts_lib
from videomla_jax.storage import model_folder

Embeddings = Float[Array, "B M E"]
RANDOM = "random:"
_DISTILLED = ("consistency", "dmd")  # stages of training


@runtime_checkable
class Source(Protocol):
  """A model before it is loaded.

  Attributes:
    pixels: Height and width of the video.
    pixel_channels: 1 (grey) or 3.
    fps: Pixel frames per second.
    shift: Warp of the noise schedule that the model was trained with.
    distilled: Whether it was trained to need a few steps and no guidance.
  """

  @property
  def pixels(self) -> tuple[int, int]: ...  # noqa: D102

  @property
  def pixel_channels(self) -> int: ...  # noqa: D102

  @property
  def fps(self) -> float | int: ...  # noqa: D102

  @property
  def shift(self) -> float | int: ...  # noqa: D102

  @property
  def distilled(self) -> bool: ...  # noqa: D102

  def check(self, prompts: list[str]) -> None:
    """Raises `ValueError` for prompts that the model cannot take."""

  def embed(self, prompts: list[str], *, negative: str | None) -> Embeddings:
    """Embeds prompts, then once per prompt the negative one, if any."""

  def load(self) -> pipeline.Parts:
    """Loads network and codec."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallSource:
  """A model of the small world, text encoder included.

  Attributes:
    model: The networks.
    distilled: See `Source`.
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
    """The codec's."""
    return self.model.codec.pixel_channels

  @property
  def fps(self) -> float | int:
    """Frames per second."""
    return self.model.config.fps

  @property
  def shift(self) -> float | int:
    """Of training."""
    return self.model.config.shift

  def check(self, prompts: list[str]) -> None:
    """Every word must be known."""
    prompts_lib.tokenize_batch(prompts)

  def embed(self, prompts: list[str], *, negative: str | None) -> Embeddings:
    """Looks the words up; the negative prompt is padding."""
    tokens = jnp.asarray(prompts_lib.tokenize_batch(prompts))
    if negative is not None:
      tokens = jnp.concatenate([tokens, jnp.zeros_like(tokens)])
    return self.model.encode_text(tokens)

  def load(self) -> pipeline.Parts:
    """Network and codec of the model."""
    return pipeline.Parts(
      dit=self.model.dit,
      codec=self.model.codec,
      frame=self.model.latent_shape(),
      fps=self.fps,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanSource:
  """Wan: three networks that are loaded one after the other.

  Attributes:
    text_encoder: Embeds prompts; called once, its networks are freed then.
    dit: Loads the network.
    codec: Loads the VAE.
    pixels: Height and width of the video.
    shift: Warp of the noise schedule.
    pixel_channels: RGB.
    fps: Pixel frames per second.
    distilled: See `Source`.
  """

  text_encoder: Callable[[list[str]], Embeddings]
  dit: Callable[[], wan.WanDiT]
  codec: Callable[[], Any]
  pixels: tuple[int, int]
  shift: float | int = 5.0
  pixel_channels: int = 3
  fps: float | int = 16
  distilled: bool = False

  def check(self, prompts: list[str]) -> None:
    """Prompts may be anything but nothing."""
    for i, prompt in enumerate(prompts):
      if not prompt:
        raise ValueError(f"prompts[{i}] is empty; write what to show.")

  def embed(self, prompts: list[str], *, negative: str | None) -> Embeddings:
    """Runs the text encoder over all prompts, each once."""
    wanted = prompts if negative is None else [*prompts, negative]
    rows = self.text_encoder(wanted)
    if negative is not None:
      index = [*range(len(prompts)), *[len(prompts)] * len(prompts)]
      rows = rows[jnp.asarray(index)]
    return rows

  def load(self) -> pipeline.Parts:
    """Network and VAE."""
    codec = self.codec()
    height, width = self._latent_size(codec.spatial_stride)
    dit = self.dit()
    return pipeline.Parts(
      dit=dit,
      codec=codec,
      frame=(height, width, codec.channels),
      fps=self.fps,
    )

  def _latent_size(self, stride: int) -> tuple[int, int]:
    step = stride * 2  # a token is a patch of 2 x 2 latent pixels
    for name, size in zip(("height", "width"), self.pixels, strict=True):
      if size < step or size % step:
        raise ValueError(
          f"{name}={size} must be a positive multiple of {step}; use "
          f"{max(step, size // step * step)}."
        )
    return self.pixels[0] // stride, self.pixels[1] // stride


def open_source(config: Any) -> Source:
  """Finds a model by `config.checkpoint` and checks that its files exist.

  Args:
    config: See configs/sample.py.

  Raises:
    ValueError: If it is no model, or parts of it are missing.
  """
  name = str(config.checkpoint)
  if name.startswith(RANDOM):
    return _random_source(name.removeprefix(RANDOM), config)
  path = model_lib.checkpoint_path(name)
  wan_parts = {"dit", "vae"} & {p.name for p in path.glob("*")}
  if wan_parts or any(config.parts.values()):
    return _wan_source(path, config)
  return open_small(path)


def open_small(path: str | os.PathLike[str]) -> SmallSource:
  """Loads a model of the small world; its folder says which stage made it.

  Args:
    path: Model folder, or `shipped:NAME`.

  Raises:
    ValueError: If it is missing or damaged.
  """
  folder = model_lib.checkpoint_path(path)
  model = model_lib.load(folder)
  stage = model_folder.read_config(folder).get("training", {}).get("stage", "")
  return SmallSource(model=model, distilled=stage in _DISTILLED)


def _wan_source(path: pathlib.Path, config: Any) -> WanSource:
  """Checks the folders of the parts; nothing is loaded yet."""
  folders = {
    name: pathlib.Path(given or path / name)
    for name, given in config.parts.items()
  }
  needed = {"dit", "vae"}
  if not config.embeddings:
    needed |= {"umt5", "tokenizer"}
  missing = sorted(str(folders[n]) for n in needed if not folders[n].exists())
  if missing:
    raise ValueError(
      f"checkpoint={str(path)!r} lacks {missing}; convert them, name others in "
      "config.parts, or give prompts embedded before in config.embeddings."
    )
  return WanSource(
    text_encoder=lambda prompts: _embeddings(folders, config, prompts),
    dit=lambda: released.load(
      folders["dit"], "wan_dit", half_weights=config.half_weights
    ),
    codec=lambda: _codec(folders["vae"], config),
    pixels=(config.height, config.width),
  )


def _codec(folder: pathlib.Path, config: Any) -> codec_lib.Codec:
  codec = released.load(folder, "wan_vae", dtype=config.vae_dtype)
  if not config.vae_tile:
    return codec
  return vae_tiling.TiledVAE(codec, tile=config.vae_tile)


def _embeddings(folders, config, prompts: list[str]) -> Embeddings:
  """Reads embeddings made before, or runs the encoder."""
  if config.embeddings:
    return jnp.asarray(embeddings.read(config.embeddings, prompts))
  tokenizer = tokenizer_lib.Tokenizer.load(folders["tokenizer"])
  encoder = released.load(folders["umt5"], "umt5")
  sizes = memory.described("text encoder", encoder)
  print(f"{sizes}, freed before the network is loaded", flush=True)
  return umt5.embed_texts(encoder, tokenizer, prompts)


def _random_source(name: str, config: Any) -> WanSource:
  """A whole Wan of tiny sizes, with random weights."""
  networks = {
    "wan_tiny": wan_config.tiny(kind="latent"),
    "wan_tiny_dense": wan_config.tiny(kind="dense"),
  }
  if name not in networks:
    raise ValueError(
      f"checkpoint='{RANDOM}{name}' is unknown; use one of "
      f"{[RANDOM + n for n in networks]}."
    )
  rngs = nnx.Rngs(config.seed)

  def encode(prompts: list[str]) -> Embeddings:
    tokenizer = tokenizer_lib.train_tokenizer(prompts)
    encoder = umt5.Umt5Encoder(umt5.tiny_umt5(), rngs=rngs)
    return umt5.embed_texts(encoder, tokenizer, prompts)

  def network() -> wan.WanDiT:
    model = wan.WanDiT(networks[name], rngs=rngs)
    # Untrained networks start with a head of zeros, which predicts nothing.
    kernel = model.head.kernel
    noise = jax.random.normal(rngs.params(), kernel.shape)
    kernel[...] = noise / np.sqrt(kernel.shape[0])
    return model

  return WanSource(
    text_encoder=encode,
    dit=network,
    codec=lambda: vae.WanVAE(vae_config.tiny_vae(), rngs=rngs),
    pixels=(config.height, config.width),
  )
