"""What network a checkpoint holds, told from names and shapes.

Shapes tell most sizes. What no shape tells, such as the number of heads or the
statistics of latents, is that of the released family with the same sizes
(`released.FAMILIES`).
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import Any, NamedTuple

from videomla_jax.conversion.names import dit as dit_names
from videomla_jax.conversion.names import families
from videomla_jax.conversion.names import tensor_table
from videomla_jax.conversion.names import tiny_decoder as tiny_names
from videomla_jax.conversion.names import umt5 as umt5_names
from videomla_jax.conversion.names import vae as vae_names
from videomla_jax.conversion.names import wrappers
from videomla_jax.models import released
from videomla_jax.models import tiny_decoder
from videomla_jax.models import umt5
from videomla_jax.models import vae_coders
from videomla_jax.models import wan_config
from videomla_jax.storage import printable

type Shapes = Mapping[str, tensor_table.Shape]

# A table of names is made before they are compared, and a stranger's number
# must not make it endless. The largest Wan has 40 blocks.
_MOST_BLOCKS = 256
_MOST_VAE_LAYERS = 32  # of the encoder; Wan's has 11


class Network(NamedTuple):
  """A network, told by its sizes, and the names of its tensors.

  Attributes:
    architecture: A name in `released.ARCHITECTURES`.
    config: Sizes of the network.
    table: All tensors of the network.
    left_out: Tensors of the same files that belong to a network which is not
      read.
  """

  architecture: str
  config: released.Config
  table: tensor_table.Table
  left_out: tuple[str, ...] = ()


_TABLES: dict[str, Callable[[Any], tensor_table.Table]] = {
  "wan_dit": dit_names.table_of,
  "wan_vae": vae_names.table_of,
  "umt5": umt5_names.table_of,
  "tiny_decoder": tiny_names.table_of,
}


# A table of a VAE takes a second, since its layers are asked for their shapes.
@functools.lru_cache(maxsize=8)
def network_of(config: released.Config) -> Network:
  """Returns the network that has these sizes, with the names of its tensors."""
  for architecture, row in released.ARCHITECTURES.items():
    if type(config) is row.config:
      return Network(architecture, config, _TABLES[architecture](config))
  raise TypeError(f"{type(config).__name__} is no config of a released network")


def detect(shapes: Shapes, *, num_heads: int | None = None) -> Network:
  """Finds out which network a checkpoint holds.

  Args:
    shapes: PyTorch shapes under the names of any format.
    num_heads: Heads of a DiT that is of no released family and whose heads have
      not 128 channels, since no shape tells their number.

  Returns:
    The network whose tensors these are, if they are complete.

  Raises:
    ValueError: If no known network has such names, or one of a family that is
      not supported.
  """
  names = wrappers.unwrapped(shapes, known_modules())
  bare = {names[name]: tuple(s) for name, s in shapes.items()}
  families.refuse(shapes, bare)
  if len(bare.get("patch_embedding.weight", ())) == 5:
    return network_of(_dit(bare, num_heads))
  for name in ("token_embedding.weight", "shared.weight"):
    if len(bare.get(name, ())) == 2:
      return network_of(_umt5(bare, bare[name]))
  # Image VAEs have the same names and four axes.
  for name in ("encoder.conv1.weight", "encoder.conv_in.weight"):
    if name in bare and len(bare[name]) == 5:
      return network_of(_vae(bare, bare[name]))
  if {tiny_names.conv_in(), tiny_names.block(0)} <= bare.keys():
    network = network_of(tiny_names.config_of(bare))
    left_out = tuple(sorted(bare.keys() & network.table.unused))
    return network._replace(left_out=left_out)
  raise ValueError(
    "source holds no network known here (it begins with "
    f"{printable.names(sorted(bare))}); give Wan's DiT, VAE or UMT5 encoder."
  )


@functools.cache
def known_modules() -> wrappers.Tree:
  """Returns the modules of all networks that are known here.

  Sizes do not matter for that, since numbers stand for each other.
  """
  tree: wrappers.Tree = {}
  for config in (
    wan_config.tiny(kind="dense"),
    wan_config.tiny(kind="latent"),
    vae_coders.tiny_vae(),
    umt5.tiny_umt5(),
    tiny_decoder.tiny(),
  ):
    _join(tree, network_of(config).table.tree())
  return tree


def _join(tree: wrappers.Tree, other: wrappers.Tree) -> None:
  """Adds the modules of one tree to another."""
  for part, below in other.items():
    _join(tree.setdefault(part, {}), below)


def _families() -> list[released.Family]:
  """Returns the families whose files may be met."""
  return [f for f in released.FAMILIES.values() if f.files]


def _first(
  bare: Shapes, *patterns: str, default: tensor_table.Shape
) -> tensor_table.Shape:
  """Returns the shape under the first name that matches a pattern.

  A default stands for names that are missing, and for shapes of another number
  of axes. It may be wrong: then the table of tensors does not fit, and the
  message says what is missing.
  """
  for name, shape in bare.items():
    if any(re.fullmatch(p, name) for p in patterns):
      return shape if len(shape) == len(default) else default
  return default


def _count(bare: Shapes, pattern: str, *, most: int = _MOST_BLOCKS) -> int:
  """Returns one more than the largest number in matching names."""
  matches = (re.match(pattern, name) for name in bare)
  numbers = [m[1] for m in matches if m]
  # A block has several tensors, and a longer number is not even counted.
  most = min(most, len(bare))
  if any(len(n) > 9 or int(n) >= most for n in numbers):
    longest = printable.text(max(numbers, key=len), most=20)
    raise ValueError(
      f"source has a block number {longest} but only {len(bare)} tensors, and "
      f"at most {_MOST_BLOCKS} blocks are read; give a whole checkpoint of Wan."
    )
  return max(map(int, numbers), default=0) + 1


def _dit(bare: Shapes, num_heads: int | None) -> wan_config.WanConfig:
  patch = bare["patch_embedding.weight"]
  width, layers = patch[0], _count(bare, r"blocks\.(\d+)\.")
  # A matrix that is none has no sizes, and is then reported as mis-shaped.
  matrices = {
    name: shape
    for name, shape in bare.items()
    if len(shape) == 2 or not name.endswith(".weight")
  }
  for family in _families():
    config = family.dit
    if (config.width, config.num_layers) == (width, layers):
      sizes = dit_names.attention_of(
        matrices, width=width, num_heads=config.attention.num_heads
      )
      return dataclasses.replace(config, attention=sizes)
  if num_heads is None and width % 128:
    raise ValueError(
      f"source is a DiT of width {width}, whose number of heads no shape tells;"
      " give --num_heads."
    )
  ffn = _first(
    bare,
    r"blocks\.0\.ffn\.(0|net\.0\.proj)\.weight",
    default=(4 * width, width),
  )
  time = _first(
    bare,
    r"time_embedding\.0\.weight",
    r"condition_embedder\.time_embedder\.linear_1\.weight",
    default=(width, 256),
  )
  text = _first(
    bare,
    r"text_embedding\.0\.weight",
    r"condition_embedder\.text_embedder\.linear_1\.weight",
    default=(width, 4096),
  )
  return wan_config.WanConfig(
    attention=dit_names.attention_of(
      matrices, width=width, num_heads=num_heads or width // 128
    ),
    num_layers=layers,
    ffn_width=ffn[0],
    channels=patch[1],
    patch=patch[-1],
    freq_dim=time[1],
    text_dim=text[1],
  )


def _vae(bare: Shapes, stem: tensor_table.Shape) -> vae_coders.VaeConfig:
  channels = _first(
    bare,
    r"conv2\.weight",
    r"post_quant_conv\.weight",
    default=(16, 16, 1, 1, 1),
  )[0]
  layers = _count(
    bare,
    r"encoder\.(?:downsamples|down_blocks)\.(\d+)\.",
    most=_MOST_VAE_LAYERS,
  )

  def sized(config: vae_coders.VaeConfig) -> vae_coders.VaeConfig:
    # The blocks of all resolutions and the halvings between them lie flat in
    # one list.
    blocks = (layers - len(config.temporal)) // len(config.multipliers)
    return dataclasses.replace(config, width=stem[0], num_blocks=max(1, blocks))

  # No file holds the statistics of latents. Those of a family are right for its
  # number of channels, and any others would be wrong.
  fitting = [f.vae for f in _families() if f.vae.channels == channels]
  if fitting:
    # Several families may have this number; one whose sizes agree comes first.
    return sized(max(fitting, key=lambda config: config == sized(config)))
  return dataclasses.replace(
    sized(_families()[0].vae),
    channels=channels,
    mean=(0.0,) * channels,
    std=(1.0,) * channels,
  )


def _umt5(bare: Shapes, embedding: tensor_table.Shape) -> umt5.Umt5Config:
  buckets, heads = _first(
    bare,
    r".*(pos_embedding\.embedding|attention_bias)\.weight",
    default=(32, 64),
  )
  inner = _first(
    bare, r".*(attn|SelfAttention)\.q\.weight", default=(4096, 4096)
  )[0]
  ffn = _first(bare, r".*(ffn\.fc1|wi_1)\.weight", default=(10240, 4096))[0]
  layers = _count(bare, r"(?:blocks|encoder\.block)\.(\d+)\.")
  return dataclasses.replace(
    umt5.umt5_xxl(),
    vocabulary=embedding[0],
    width=embedding[1],
    num_heads=heads,
    head_dim=inner // heads,
    ffn_width=ffn,
    num_layers=layers,
    num_buckets=buckets,
  )
