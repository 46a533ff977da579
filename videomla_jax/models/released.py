"""Released networks: what each family is, and its networks as model folders.

A release holds three networks and a tokenizer. `convert` turns each network
into a model folder of its own: its `config.json` holds `architecture`, a row of
`ARCHITECTURES`, and `config`, the sizes. What a family is beyond the sizes of
its networks stands in one row of `FAMILIES`: another Wan is another row.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any, Literal, NamedTuple, overload

from flax import nnx
import jax
import jax.numpy as jnp

from videomla_jax.models import tiny_decoder
from videomla_jax.models import umt5
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.models import wan
from videomla_jax.models import wan_block
from videomla_jax.models import wan_config
from videomla_jax.storage import model_folder

type PathLike = str | os.PathLike[str]
type Config = (
  wan_config.WanConfig
  | vae_coders.VaeConfig
  | umt5.Umt5Config
  | tiny_decoder.TinyDecoderConfig
)
type Network = (
  wan.WanDiT | vae.WanVAE | umt5.Umt5Encoder | tiny_decoder.TinyDecoder
)


class Architecture(NamedTuple):
  """A kind of network that a release may hold.

  Attributes:
    component: Role in a release and name of the folder: "dit", "vae", "umt5" or
      "tiny_decoder".
    config: Class that holds the sizes.
    module: Class of the network, made from a config and `rngs`.
  """

  component: str
  config: type[Config]
  module: type[Network]


ARCHITECTURES: dict[str, Architecture] = {
  "wan_dit": Architecture("dit", wan_config.WanConfig, wan.WanDiT),
  "wan_vae": Architecture("vae", vae_coders.VaeConfig, vae.WanVAE),
  "umt5": Architecture("umt5", umt5.Umt5Config, umt5.Umt5Encoder),
  "tiny_decoder": Architecture(
    "tiny_decoder", tiny_decoder.TinyDecoderConfig, tiny_decoder.TinyDecoder
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """Networks that were released together, and the videos they were made for.

  Attributes:
    files: Pattern of the files of each component in the release's own folder;
      the components are "dit", "vae", "umt5" and "tokenizer". Empty if nothing
      was released and the networks exist with random weights only.
    dit: Sizes of the network, with dense attention; holds the number of text
      tokens.
    vae: Sizes of the VAE, its strides and the statistics of its latents.
    text_encoder: Sizes of the text encoder.
    fps: Pixel frames per second.
    shift: Warp of the noise schedule, where nothing else is asked for.
    height: Pixel rows of a usual video.
    width: Pixel columns of a usual video.
  """

  files: Mapping[str, str]
  dit: wan_config.WanConfig
  vae: vae_coders.VaeConfig
  text_encoder: umt5.Umt5Config
  fps: int
  shift: float
  height: int
  width: int

  @property
  def pixel_step(self) -> int:
    """Pixels per token along one side, which divide height and width."""
    return self.vae.spatial_stride * self.dit.patch


_WAN_2_1_FILES = {
  "dit": "diffusion_pytorch_model*.safetensors*",
  "vae": "Wan2.1_VAE.pth",
  "umt5": "models_t5_umt5-xxl-enc-bf16.pth",
  "tokenizer": "google/umt5-xxl/spiece.model",
}

# The first row stands in for networks of sizes that no row has.
FAMILIES: dict[str, Family] = {
  "wan_1p3b": Family(  # Wan2.1-T2V-1.3B
    files=_WAN_2_1_FILES,
    dit=wan_config.wan_1p3b(kind="dense"),
    vae=vae_coders.wan_vae(),
    text_encoder=umt5.umt5_xxl(),
    fps=16,
    shift=5.0,
    height=480,
    width=832,
  ),
  "wan_14b": Family(  # Wan2.1-T2V-14B
    files=_WAN_2_1_FILES,
    dit=wan_config.wan_14b(kind="dense"),
    vae=vae_coders.wan_vae(),
    text_encoder=umt5.umt5_xxl(),
    fps=16,
    shift=5.0,
    height=720,
    width=1280,
  ),
  "wan_tiny": Family(  # random weights, to try the machinery in seconds
    files={},
    dit=wan_config.tiny(kind="dense"),
    vae=vae_coders.tiny_vae(),
    text_encoder=umt5.tiny_umt5(),
    fps=16,
    shift=5.0,
    height=32,
    width=48,
  ),
}


def family_of(config: wan_config.WanConfig | vae_coders.VaeConfig) -> Family:
  """Returns the family that a DiT or a VAE belongs to, told from its sizes.

  A network of other sizes, as training may make one, counts to the first family
  whose latents have as many channels, and without such to the first of all.

  Args:
    config: Sizes of the network, of either kind of attention.
  """
  component = "vae" if isinstance(config, vae_coders.VaeConfig) else "dit"

  def likeness(family: Family) -> tuple[bool, bool]:
    own = getattr(family, component)
    return own.channels == config.channels, _sizes(own) == _sizes(config)

  # `max` takes the first of equals, so the order of the rows decides.
  return max(FAMILIES.values(), key=likeness)


def _sizes(
  config: wan_config.WanConfig | vae_coders.VaeConfig,
) -> tuple[object, ...]:
  """Returns the sizes that tell one release from another."""
  if isinstance(config, vae_coders.VaeConfig):
    return config.width, config.temporal
  return config.width, config.num_layers


def family_at(path: PathLike) -> Family:
  """Returns the family of a DiT or a VAE on disk, reading no weights.

  Args:
    path: Model folder that `convert` or training wrote.

  Raises:
    ValueError: If the folder is missing or holds another network.
  """
  config = config_at(path)
  if isinstance(config, (wan_config.WanConfig, vae_coders.VaeConfig)):
    return family_of(config)
  text = isinstance(config, umt5.Umt5Config)
  raise ValueError(
    f"checkpoint={str(path)!r} is a {'text encoder' if text else 'decoder'}, "
    "which several families share; give the folder of the DiT or of the VAE."
  )


def config_at(path: PathLike) -> Config:
  """Returns the sizes of a network on disk, reading no weights.

  Args:
    path: Model folder of a released network.

  Raises:
    ValueError: If the folder is missing or holds another kind of model.
  """
  about = model_folder.read_config(pathlib.Path(path))
  architecture = about.get("architecture", "video model")
  if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
    raise ValueError(
      f"checkpoint={str(path)!r} holds a {architecture!r:.80}; give a folder "
      "that convert wrote."
    )
  return ARCHITECTURES[architecture].config.from_dict(about.get("config"))


@overload
def load(
  path: PathLike,
  needed: Literal["dit", "wan_dit"],
  *,
  half_weights: bool = ...,
  **changes: str | bool | int,
) -> wan.WanDiT: ...


@overload
def load(
  path: PathLike,
  needed: Literal["vae", "wan_vae"],
  *,
  half_weights: bool = ...,
  **changes: str | bool | int,
) -> vae.WanVAE: ...


@overload
def load(
  path: PathLike,
  needed: Literal["umt5"],
  *,
  half_weights: bool = ...,
  **changes: str | bool | int,
) -> umt5.Umt5Encoder: ...


@overload
def load(
  path: PathLike,
  needed: Literal["tiny_decoder"],
  *,
  half_weights: bool = ...,
  **changes: str | bool | int,
) -> tiny_decoder.TinyDecoder: ...


def load(
  path: PathLike,
  needed: str,
  *,
  half_weights: bool = False,
  **changes: str | bool | int,
) -> Network:
  """Loads one network of a release.

  Args:
    path: Model folder of the network.
    needed: What it must be: a component such as "vae", or an architecture
      such as "wan_vae".
    half_weights: Keep kernels that are used in bfloat16 in bfloat16 only,
      which halves their memory; not for training.
    **changes: Fields of the config to replace, such as `dtype`.

  Raises:
    ValueError: If the folder is missing, damaged or holds something else.
  """
  about = model_folder.read_config(path)
  found = about.get("architecture", "video model")
  row = ARCHITECTURES.get(found) if isinstance(found, str) else None
  if row is None or needed not in (found, row.component):
    raise ValueError(
      f"checkpoint={str(path)!r} holds a {found!r:.80} where a {needed!r} is "
      "needed; give the folder that convert wrote for it."
    )
  sizes: Any = row.config.from_dict(about.get("config"))
  config = dataclasses.replace(sizes, **changes)
  # The network is made of shapes: random weights would take its memory twice.
  model = nnx.eval_shape(lambda: row.module(config, rngs=nnx.Rngs(0)))
  if half_weights:
    halve(model)
  # What is there is compared with what the network needs before it is read.
  arrays, _ = model_folder.load_model_state(path, model=model)
  model_folder.update_model(model, arrays)
  return model


def save(path: PathLike, model: nnx.Module, **about: Any) -> None:
  """Writes one network of a release as a model folder.

  Args:
    path: Folder to create or replace.
    model: A network of a class in `ARCHITECTURES`.
    **about: More JSON values to keep in the folder's config.

  Raises:
    ValueError: If the network is of no such class, or its layers lie apart.
  """
  if isinstance(model, wan.WanDiT) and model.layers_apart:
    raise ValueError(
      "model has its layers apart, and files have them stacked; save the "
      "network that was taken apart."
    )
  for architecture, row in ARCHITECTURES.items():
    # No subclass: it would be loaded as its base.
    if type(model) is row.module:
      config = model.config.to_dict()
      about |= dict(architecture=architecture, config=config)
      return model_folder.save_model(path, model, about, keep_dtypes=True)
  raise ValueError(
    f"model={type(model).__name__} is no component of a release; use one of "
    f"{sorted(ARCHITECTURES)}."
  )


def halve(model: nnx.Module) -> None:
  """Sets abstract kernels of bfloat16 products to bfloat16, in place.

  Args:
    model: Network with shapes in place of arrays.
  """
  # A product casts its kernel to bfloat16 anyway, so no output changes.
  for _, module in nnx.iter_modules(model):
    if isinstance(module, nnx.Linear) and module.dtype == jnp.bfloat16:
      shape = jax.ShapeDtypeStruct(module.kernel.shape, jnp.bfloat16)
      module.kernel.set_value(shape)


def with_products(model: wan.WanDiT, products: str) -> wan.WanDiT:
  """Returns a network that multiplies in float8; needs no calibration.

  Args:
    model: Network of any weights, or of shapes; it stays as it is.
    products: A name in `quantise.PRODUCTS`; empty returns the network.
  """
  if not products or products == model.config.products:
    return model
  # The copy shares what is not rounded.
  model = nnx.merge(*nnx.split(model))
  model.config = dataclasses.replace(model.config, products=products)
  blocks: Any = model.blocks
  for block in blocks if model.layers_apart else (blocks,):
    wan_block.use_float8(block, products)
  return model
