"""Names of Wan's DiT: those of the original code and those of diffusers.

docs/method.md, section 2.10. Values never differ, so diffusers names are a
function of the original ones. Latent attention has the symbols of its paper as
names (VideoMLA, arXiv:2605.30351), since no names of a release are known here.
"""

from collections.abc import Mapping
import re
from typing import Any

from flax import nnx
import numpy as np

from videomla_jax.conversion.names import layout
from videomla_jax.conversion.names import tensor_table
from videomla_jax.models import attention
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

Tensors = dict[str, tensor_table.Tensor]

# From original to diffusers; the first match wins. The norms of a block swap
# names: the one with parameters is norm3 in the original and norm2 there.
_TO_DIFFUSERS = (
  (r"time_embedding\.0", "condition_embedder.time_embedder.linear_1"),
  (r"time_embedding\.2", "condition_embedder.time_embedder.linear_2"),
  (r"text_embedding\.0", "condition_embedder.text_embedder.linear_1"),
  (r"text_embedding\.2", "condition_embedder.text_embedder.linear_2"),
  (r"time_projection\.1", "condition_embedder.time_proj"),
  (r"head\.modulation", "scale_shift_table"),
  (r"head\.head", "proj_out"),
  (r"(blocks\.\d+)\.modulation", r"\1.scale_shift_table"),
  (r"(blocks\.\d+)\.self_attn\.([qkv])\b", r"\1.attn1.to_\2"),
  (r"(blocks\.\d+)\.self_attn\.o", r"\1.attn1.to_out.0"),
  (r"(blocks\.\d+)\.self_attn", r"\1.attn1"),
  (r"(blocks\.\d+)\.cross_attn\.([qkv])\b", r"\1.attn2.to_\2"),
  (r"(blocks\.\d+)\.cross_attn\.o", r"\1.attn2.to_out.0"),
  (r"(blocks\.\d+)\.cross_attn", r"\1.attn2"),
  (r"(blocks\.\d+)\.norm3", r"\1.norm2"),
  (r"(blocks\.\d+)\.ffn\.0", r"\1.ffn.net.0.proj"),
  (r"(blocks\.\d+)\.ffn\.2", r"\1.ffn.net.2"),
)


def to_diffusers(name: str) -> str:
  """Returns the name that diffusers gives to an original tensor."""
  for pattern, replacement in _TO_DIFFUSERS:
    renamed, matches = re.subn(f"^{pattern}", replacement, name)
    if matches:
      return renamed
  return name


def table_of(config: wan_config.WanConfig) -> tensor_table.Table:
  """Returns all tensors of a network, with either kind of attention.

  Args:
    config: Sizes of the network.
  """
  width, patch = config.width, config.patch
  inputs = config.channels * patch**2
  kernel = (width, config.channels, 1, patch, patch)
  tensors = {
    "patch_embedding.weight": tensor_table.Tensor(
      kernel, "patch_embed/kernel", layout.PATCHES
    ),
    "patch_embedding.bias": tensor_table.Tensor((width,), "patch_embed/bias"),
    **_mlp("time_embedding", "time_embed", config.freq_dim, width),
    **tensor_table.linear(
      "time_projection.1", "time_project", width, 6 * width
    ),
    **_mlp("text_embedding", "text_embed", config.text_dim, width),
    "head.modulation": tensor_table.Tensor(
      (1, 2, width), "head_modulation", layout.SQUEEZED
    ),
    **tensor_table.linear("head.head", "head", width, inputs),
  }
  for n in range(config.num_layers):
    tensors |= _block(config, n)
  return tensor_table.Table(
    tensors=tensors, formats={"diffusers": to_diffusers}
  )


def _mlp(name: str, path: str, inputs: int, width: int) -> Tensors:
  return {
    **tensor_table.linear(f"{name}.0", f"{path}/into", inputs, width),
    **tensor_table.linear(f"{name}.2", f"{path}/out", width, width),
  }


def _block(config: wan_config.WanConfig, n: int) -> Tensors:
  width, ffn = config.width, config.ffn_width
  name = f"blocks.{n}"
  return {
    f"{name}.modulation": tensor_table.Tensor(
      (1, 6, width), "blocks/modulation", layout.SQUEEZED, n
    ),
    **self_attention(config, n),
    **_attention(f"{name}.cross_attn", "blocks/cross_attention", width, n),
    **tensor_table.gain(f"{name}.norm3", "blocks/cross_norm", width, block=n),
    f"{name}.norm3.bias": tensor_table.Tensor(
      (width,), "blocks/cross_norm/bias", block=n
    ),
    **tensor_table.linear(
      f"{name}.ffn.0", "blocks/ffn/into", width, ffn, block=n
    ),
    **tensor_table.linear(
      f"{name}.ffn.2", "blocks/ffn/out", ffn, width, block=n
    ),
  }


def self_attention(config: wan_config.WanConfig, n: int) -> Tensors:
  """Returns the tensors of block n that a conversion replaces.

  Args:
    config: Sizes of the network, with either kind of attention.
    n: Number of the block, from 0.
  """
  name, path = f"blocks.{n}.self_attn", "blocks/self_attention"
  if config.attention.kind == "dense":
    return _attention(name, path, config.width, n)
  sizes = config.attention
  width, heads, d_q = sizes.width, sizes.num_heads, sizes.d_q
  biased = {
    "w_kr": (width, sizes.d_rope),
    "w_uq": (d_q, heads * sizes.d_nope),
    "w_qr": (d_q, heads * sizes.d_rope),
  }
  # The softmax does not see a bias of content keys, and that of values moves
  # into the bias of W_o.
  bare = {
    "w_uk": (sizes.d_c, heads * sizes.d_nope),
    "w_uv": (sizes.d_c, width),
  }
  down = {"w_dkv": (width, sizes.d_c), "w_dq": (width, d_q)}
  (biased if sizes.down_bias else bare).update(down)
  tensors = tensor_table.linear(
    f"{name}.o", f"{path}/w_o", width, width, block=n
  )
  for matrix, (inputs, outputs) in (biased | bare).items():
    both = tensor_table.linear(
      f"{name}.{matrix}", f"{path}/{matrix}", inputs, outputs, block=n
    )
    if matrix in bare:
      del both[f"{name}.{matrix}.bias"]
    tensors |= both
  for theirs, ours, features in (
    ("norm_c", "content_norm", sizes.d_c),
    ("norm_q", "query_norm", d_q),
  ):
    tensors |= tensor_table.gain(
      f"{name}.{theirs}", f"{path}/{ours}", features, block=n
    )
  return tensors


def attention_of(
  shapes: Mapping[str, tensor_table.Shape], *, width: int, num_heads: int
) -> attention.AttentionConfig:
  """Returns the sizes of self-attention, told from the tensors of a network.

  Args:
    shapes: Shapes under original names; other formats have dense attention
      only. Sizes that they lack are defaults, with which a table of tensors
      does not fit.
    width: Model width E.
    num_heads: Number of heads, which no shape tells.
  """
  sizes = dict(width=width, num_heads=num_heads)
  name = "blocks.0.self_attn."
  if f"{name}w_dkv.weight" not in shapes:
    return attention.AttentionConfig(kind="dense", **sizes)
  found: dict[str, Any] = {
    size: shapes[f"{name}{part}.weight"][0]
    for size, part in dict(d_c="w_dkv", d_rope="w_kr", d_q="w_dq").items()
    if f"{name}{part}.weight" in shapes
  }
  found["down_bias"] = f"{name}w_dkv.bias" in shapes
  return attention.AttentionConfig(kind="latent", **sizes, **found)


def _attention(name: str, path: str, width: int, n: int) -> Tensors:
  """Returns the tensors of dense attention, to itself or to the text."""
  tensors: Tensors = {}
  for theirs, ours in dict(q="query", k="key", v="value", o="out").items():
    tensors |= tensor_table.linear(
      f"{name}.{theirs}", f"{path}/{ours}", width, width, block=n
    )
  for theirs, ours in dict(norm_q="query_norm", norm_k="key_norm").items():
    tensors |= tensor_table.gain(
      f"{name}.{theirs}", f"{path}/{ours}", width, block=n
    )
  return tensors


def check_dense(config: wan_config.WanConfig) -> None:
  """Refuses architectures that Wan's checkpoints do not have.

  Args:
    config: Sizes of the network.

  Raises:
    ValueError: If attention is not dense, or there is a learned grid.
  """
  if config.attention.kind != "dense":
    raise ValueError(
      f"attention.kind={config.attention.kind!r} must be 'dense', as the "
      "checkpoints of Wan are; convert the dense network afterwards."
    )
  if config.learned_grid is not None:
    raise ValueError(
      f"learned_grid={config.learned_grid} must be None, since Wan has no such "
      "parameter."
    )


def load_dense(
  config: wan_config.WanConfig, tensors: Mapping[str, np.ndarray]
) -> wan.WanDiT:
  """Returns a dense network with the values of PyTorch tensors.

  Args:
    config: Sizes, with dense attention and without a learned grid.
    tensors: Every tensor of the network, under original or diffusers names.

  Raises:
    ValueError: If the config has another architecture, or names or shapes
      differ; the message lists all of them.
  """
  check_dense(config)
  arrays = table_of(config).read(tensors)
  model = nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))
  model_folder.update_model(model, tree_names.nested_dict(arrays))
  return model
