"""A whole network with latent attention made from a dense one, in memory."""

from collections.abc import Sequence
import dataclasses

from flax import nnx
import numpy as np

from videomla_jax.conversion import latent_layer as layer_lib
from videomla_jax.conversion import moments
from videomla_jax.models import attention
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

SELF_ATTENTION = "blocks/self_attention/"


def latent_config(
  dense: wan_config.WanConfig, *, d_c: int, d_rope: int, d_q: int
) -> wan_config.WanConfig:
  """The config of a converted network.

  Raises:
    ValueError: If the network is not dense, or the sizes do not fit.
  """
  if dense.attention.kind != "dense":
    raise ValueError(
      f"attention.kind={dense.attention.kind!r} must be 'dense' to be "
      "converted; give the dense network."
    )
  sizes = attention.AttentionConfig(
    kind="latent",
    width=dense.width,
    num_heads=dense.attention.num_heads,
    d_c=d_c,
    d_rope=d_rope,
    d_q=d_q,
  )
  return dataclasses.replace(dense, attention=sizes)


def to_latent(
  dense: wan.WanDiT,
  config: wan_config.WanConfig,
  *,
  method: layer_lib.Method,
  seed: int = 0,
  tokens: Sequence[moments.Tokens] | None = None,
) -> tuple[wan.WanDiT, list[layer_lib.LayerReport]]:
  """Converts every self-attention and keeps everything else.

  Args:
    dense: The network to start from.
    config: Of the result, see `latent_config`.
    method: See `layer.latent_layer`.
    seed: Of random parameters.
    tokens: Inputs of each layer, see `activations.collect`; without them,
      moments are predicted from the modulation.

  Returns:
    The network with latent attention, and what each layer kept.

  Raises:
    ValueError: If sizes do not fit.
  """
  arrays = {
    name: np.asarray(x)
    for name, x in tree_names.flat_dict(
      model_folder.model_arrays(dense)
    ).items()
  }
  own = {
    name.removeprefix(SELF_ATTENTION): arrays.pop(name)
    for name in [*arrays]
    if name.startswith(SELF_ATTENTION)
  }
  layers, reports = [], []
  times = moments.time_table(arrays)
  for n in range(dense.config.num_layers):
    layer = {name: x[n] for name, x in own.items()}
    table = times + arrays["blocks/modulation"][n]
    made, report = layer_lib.latent_layer(
      layer,
      config.attention,
      method=method,
      seed=seed + n,
      moments=moments.predicted(layer, table[:, 0], table[:, 1]),
      tokens=None if tokens is None else tokens[n],
    )
    layers.append(made)
    reports.append(report)
  for name in layers[0]:
    arrays[SELF_ATTENTION + name] = np.stack([made[name] for made in layers])
  model = nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))
  model_folder.update_model(model, tree_names.nested_dict(arrays))
  return model, reports
