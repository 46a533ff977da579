"""Networks with latent attention, made from networks with dense attention.

Every self-attention is replaced, everything else is kept. One loop converts the
layers, wherever they lie: tensors of a checkpoint that is read piece by piece
(`release`), a network in memory, or a small video model with its words.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
from typing import NamedTuple

from flax import nnx
from jaxtyping import Float
import numpy as np

from videomla_jax.conversion import latent_layer
from videomla_jax.conversion import moments
from videomla_jax.models import attention
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.ops import rope
from videomla_jax.small_world import model as small_model
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

SELF_ATTENTION = "blocks/self_attention/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """Says how dense attention becomes latent attention.

  Attributes:
    method: "spectral" keeps what it can of the dense layers; "random" keeps
      only their output projections and serves as a control.
    d_c: Channels of the content latent.
    d_rope: Channels of the positional key that all heads share.
    d_q: Channels of the query latent.
    seed: Seed of random parameters.
    activations: File of inputs that the layers get on real latents, written by
      `calibrate`; empty if there is none.
    rope_ladder: Frequencies of the positional key, see `AttentionConfig`.
  """

  method: latent_layer.Method
  d_c: int
  d_rope: int
  d_q: int
  seed: int = 0
  activations: str = ""
  rope_ladder: str = "wan"

  def __post_init__(self) -> None:
    latent_layer.check_ladder(self.method, self.rope_ladder)

  def tokens(self, n: int) -> moments.Tokens | None:
    """Reads the real inputs of layer n, where the method uses them."""
    if not self.activations or self.method == "random":
      return None
    return moments.load(self.activations, n)


class DenseLayer(NamedTuple):
  """Holds what a conversion reads of one layer.

  Attributes:
    parameters: Parameters of `DenseSelfAttention`, names with slashes.
    modulation: The block's own modulation, which is added to that of the
      timestep; its first two rows shift and scale the attention's input.
    tokens: Inputs that the layer gets on real latents, if they are known.
  """

  parameters: Mapping[str, np.ndarray]
  modulation: Float[np.ndarray, "six E"]
  tokens: moments.Tokens | None = None


def latent_config(
  dense: wan_config.WanConfig,
  *,
  d_c: int,
  d_rope: int,
  d_q: int,
  rope_ladder: str = "wan",
) -> wan_config.WanConfig:
  """Returns the config of a converted network.

  Args:
    dense: Config of the network to convert.
    d_c: Channels of the content latent.
    d_rope: Channels of the shared positional key.
    d_q: Channels of the query latent.
    rope_ladder: Frequencies of the positional key, see `AttentionConfig`.

  Raises:
    ValueError: If the network is not dense, or the sizes do not fit.
  """
  if min(d_c, d_rope, d_q) < 1:
    raise ValueError(
      f"{d_c=}, {d_rope=} and {d_q=} must be positive; leave them out for the "
      "usual sizes."
    )
  if dense.attention.kind != "dense":
    raise ValueError(
      f"attention.kind={dense.attention.kind!r} must be 'dense' to be "
      "converted; give the dense network."
    )
  head_dim = dense.attention.head_dim
  if not _works(head_dim, d_rope):
    usual = usual_d_rope(head_dim)
    raise ValueError(
      f"d_rope={d_rope} does not fit heads of {head_dim} channels, whose "
      f"positional channels are pairs below {head_dim}; use --d_rope={usual}."
    )
  sizes = attention.AttentionConfig(
    kind="latent",
    width=dense.width,
    num_heads=dense.attention.num_heads,
    d_c=d_c,
    d_rope=d_rope,
    d_q=d_q,
    rope_ladder=rope_ladder,
  )
  return dataclasses.replace(dense, attention=sizes)


def usual_sizes(config: object) -> tuple[int, int, int]:
  """Returns d_c, d_rope and d_q, which are the paper's shares.

  Args:
    config: Sizes of a dense network; of another one all sizes are the least,
      since it is refused where it would be changed.
  """
  if not isinstance(config, wan_config.WanConfig):
    return 1, 0, 1
  width = config.width
  d_rope = usual_d_rope(config.attention.head_dim)
  return max(width // 8, 1), d_rope, max(width // 2, 1)


def usual_d_rope(head_dim: int) -> int:
  """Returns the size of the positional key: about a quarter of a head.

  Args:
    head_dim: Channels of a head of the dense network.

  Raises:
    ValueError: If no size works, since heads are too narrow.
  """
  # Channels are rotated in pairs, of which each axis has a share of its own.
  working = [d for d in range(2, head_dim, 2) if _works(head_dim, d)]
  if not working:
    raise ValueError(
      f"--to=latent needs heads of at least 4 channels, and of an even number; "
      f"the source has {head_dim}."
    )
  return min(working, key=lambda d: (abs(4 * d - head_dim), -d))


def _works(head_dim: int, d_rope: int) -> bool:
  """Says whether so many channels of a head can be rotated."""
  try:
    rope.wan_bands(head_dim, rope_dim=d_rope)
  except ValueError:
    return False
  return d_rope < head_dim


def convert_layers(
  read_layer: Callable[[int], DenseLayer],
  time_parameters: Mapping[str, np.ndarray],
  config: wan_config.WanConfig,
  *,
  method: latent_layer.Method,
  seed: int = 0,
) -> Iterator[tuple[latent_layer.Arrays, latent_layer.LayerReport]]:
  """Converts self-attentions one by one, so that only one is in memory.

  Args:
    read_layer: Returns what is needed of layer n.
    time_parameters: Parameters of the time embedding and projection, which
      tell how the inputs of all layers are modulated.
    config: Config of the result, see `latent_config`.
    method: How to convert, see `latent_layer.latent_layer`.
    seed: Seed of random parameters.

  Yields:
    Parameters of each layer's `LatentSelfAttention`, and what was kept.
  """
  # All blocks share this projection, and each adds a modulation of its own.
  times = moments.time_table(time_parameters)
  for n in range(config.num_layers):
    layer = read_layer(n)
    modulation = times + layer.modulation
    yield latent_layer.latent_layer(
      layer.parameters,
      config.attention,
      method=method,
      seed=seed + n,  # layers must not start from equal numbers
      moments=moments.predicted(
        layer.parameters, modulation[:, 0], modulation[:, 1]
      ),
      tokens=layer.tokens,
    )


def layer_parameters(model: wan.WanDiT, n: int) -> dict[str, np.ndarray]:
  """Returns the parameters of the self-attention of layer n, with slashes."""
  parameters = model_folder.model_arrays(model.blocks.self_attention)
  flat = tree_names.flat_dict(parameters)
  return {name: np.asarray(x[n]) for name, x in flat.items()}


def to_latent(
  dense: wan.WanDiT,
  config: wan_config.WanConfig,
  *,
  method: latent_layer.Method,
  seed: int = 0,
  tokens: Sequence[moments.Tokens] | None = None,
) -> tuple[wan.WanDiT, list[latent_layer.LayerReport]]:
  """Converts a network that is in memory.

  Args:
    dense: The network to start from.
    config: Config of the result, see `latent_config`.
    method: How to convert, see `latent_layer.latent_layer`.
    seed: Seed of random parameters.
    tokens: Inputs that each layer gets on real latents, see
      `calibration.collect`; without them, their moments are predicted from the
      modulation.

  Returns:
    The network with latent attention, and what each layer kept.

  Raises:
    ValueError: If sizes do not fit.
  """
  flat = tree_names.flat_dict(model_folder.model_arrays(dense))
  arrays = {
    name: np.asarray(x)
    for name, x in flat.items()
    if not name.startswith(SELF_ATTENTION)
  }

  def read_layer(n: int) -> DenseLayer:
    return DenseLayer(
      layer_parameters(dense, n),
      arrays["blocks/modulation"][n],
      None if tokens is None else tokens[n],
    )

  converted = convert_layers(
    read_layer, arrays, config, method=method, seed=seed
  )
  layers, reports = zip(*converted, strict=True)
  for name in layers[0]:
    arrays[SELF_ATTENTION + name] = np.stack([layer[name] for layer in layers])
  # Only shapes are needed: drawing parameters that are replaced at once takes
  # minutes at the size of Wan.
  model = nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))
  model_folder.update_model(model, tree_names.nested_dict(arrays))
  return model, [*reports]


def small_to_latent(
  model: small_model.VideoModel,
  recipe: Recipe,
  *,
  tokens: Sequence[moments.Tokens] | None = None,
) -> tuple[small_model.VideoModel, list[dict[str, str | float | int]]]:
  """Converts a small video model; its words and its VAE stay as they are.

  The sizes are the small network's own, so only d_c and d_rope are free.

  Args:
    model: A dense model.
    recipe: How to convert.
    tokens: Inputs that each layer gets on real latents, see `to_latent`.

  Returns:
    The model with latent attention, and what each layer kept.

  Raises:
    ValueError: If it is not dense, or the small network has no such sizes.
  """
  if recipe.activations:
    raise ValueError(
      f"activations={recipe.activations!r} are of a released model; leave "
      "--activations out for a small one."
    )
  config = dataclasses.replace(
    model.config,
    kind="latent",
    d_c=recipe.d_c,
    d_rope=recipe.d_rope,
    rope_ladder=recipe.rope_ladder,
  )
  # The small world's checkpoints have no field for d_q: the size fixes it.
  d_q = config.network.attention.d_q
  if recipe.d_q != d_q:
    raise ValueError(
      f"d_q={recipe.d_q} does not fit the small network, which has {d_q}; "
      "leave --d_q out."
    )
  sizes = dict(d_c=recipe.d_c, d_rope=recipe.d_rope, d_q=d_q)
  network = latent_config(
    model.dit.config, **sizes, rope_ladder=recipe.rope_ladder
  )
  dit, reports = to_latent(
    model.dit, network, method=recipe.method, seed=recipe.seed, tokens=tokens
  )
  latent = nnx.eval_shape(
    lambda: small_model.VideoModel(config, rngs=nnx.Rngs(0), codec=model.codec)
  )
  latent.dit, latent.text = dit, model.text
  return latent, [report.to_dict() for report in reports]


def convert_small(
  output: str | os.PathLike[str],
  model: small_model.VideoModel,
  recipe: Recipe,
  *,
  source: str,
) -> None:
  """Converts a small video model and writes it with a report of what it kept.

  Args:
    output: Folder to create or replace.
    model: A dense model.
    recipe: How to convert.
    source: Where the model is from, as its config will say.

  Raises:
    ValueError: If it is not dense, or the small network has no such sizes.
  """
  latent, reports = small_to_latent(model, recipe)
  small_model.save(
    output,
    latent,
    init=dataclasses.asdict(recipe),
    source=dict(files=source),
    layers=reports,
  )
