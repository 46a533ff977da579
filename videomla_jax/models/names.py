"""PyTorch names of Wan's DiT and where their tensors go in ours.

spec/wan.md A7 and A9. Released checkpoints come under two sets of names: those
of the original code and those of diffusers. Values never differ, so diffusers
names become original ones first, and one table leads from there to `WanDiT`
with dense attention. Plain numpy: no tensor touches a device before all names
and shapes are known to be right.
"""

import collections
from collections.abc import Callable
from collections.abc import Mapping
import re
from typing import NamedTuple

from flax import nnx
import numpy as np

from videomla_jax import checkpoint
from videomla_jax import tree_names
from videomla_jax.models import wan

Shape = tuple[int, ...]
Transform = Callable[[np.ndarray], np.ndarray]
Leaves = dict[str, tuple[str, Transform]]


def _same(x: np.ndarray) -> np.ndarray:
  return x


def _transposed(x: np.ndarray) -> np.ndarray:
  """Linear [out, in] to [in, out]."""
  return x.T


def _patches(x: np.ndarray) -> np.ndarray:
  """Convolution [E, C, 1, p, p] to [C p p, E], channel slowest."""
  return x.reshape(x.shape[0], -1).T


def _first(x: np.ndarray) -> np.ndarray:
  """Table [1, rows, E] to [rows, E]."""
  return x[0]


_LINEAR: Leaves = {"weight": ("kernel", _transposed), "bias": ("bias", _same)}
_PATCH: Leaves = {"weight": ("kernel", _patches), "bias": ("bias", _same)}
_NORM: Leaves = {"weight": ("gain", _same)}
_AFFINE: Leaves = {"weight": ("gain", _same), "bias": ("bias", _same)}
_TABLE: Leaves = {"modulation": ("modulation", _first)}

# Wan module, ours, and its parameters. `N.` is a block, in ours an index of the
# stacked leading axis.
_MODULES: tuple[tuple[str, str, Leaves], ...] = (
  (r"patch_embedding\.", r"patch_embed/", _PATCH),
  (r"(time|text)_embedding\.0\.", r"\1_embed/into/", _LINEAR),
  (r"(time|text)_embedding\.2\.", r"\1_embed/out/", _LINEAR),
  (r"time_projection\.1\.", r"time_project/", _LINEAR),
  (r"N\.", r"blocks/", _TABLE),
  (r"N\.(self|cross)_attn\.q\.", r"blocks/\1_attention/query/", _LINEAR),
  (r"N\.(self|cross)_attn\.k\.", r"blocks/\1_attention/key/", _LINEAR),
  (r"N\.(self|cross)_attn\.v\.", r"blocks/\1_attention/value/", _LINEAR),
  (r"N\.(self|cross)_attn\.o\.", r"blocks/\1_attention/out/", _LINEAR),
  (
    r"N\.(self|cross)_attn\.norm_q\.",
    r"blocks/\1_attention/query_norm/",
    _NORM,
  ),
  (r"N\.(self|cross)_attn\.norm_k\.", r"blocks/\1_attention/key_norm/", _NORM),
  (r"N\.norm3\.", r"blocks/cross_norm/", _AFFINE),
  (r"N\.ffn\.0\.", r"blocks/ffn/into/", _LINEAR),
  (r"N\.ffn\.2\.", r"blocks/ffn/out/", _LINEAR),
  (r"head\.", r"head_", _TABLE),
  (r"head\.head\.", r"head/", _LINEAR),
)

# diffusers -> original, first match wins. The norms of a block swap names: the
# affine one is norm2 there and norm3 here.
_DIFFUSERS = (
  (r"condition_embedder\.time_embedder\.linear_1\.", r"time_embedding.0."),
  (r"condition_embedder\.time_embedder\.linear_2\.", r"time_embedding.2."),
  (r"condition_embedder\.text_embedder\.linear_1\.", r"text_embedding.0."),
  (r"condition_embedder\.text_embedder\.linear_2\.", r"text_embedding.2."),
  (r"condition_embedder\.time_proj\.", r"time_projection.1."),
  (r"(blocks\.\d+)\.scale_shift_table$", r"\1.modulation"),
  (r"(blocks\.\d+)\.attn1\.to_([qkv])\.", r"\1.self_attn.\2."),
  (r"(blocks\.\d+)\.attn1\.to_out\.0\.", r"\1.self_attn.o."),
  (r"(blocks\.\d+)\.attn1\.norm_", r"\1.self_attn.norm_"),
  (r"(blocks\.\d+)\.attn2\.to_([qkv])\.", r"\1.cross_attn.\2."),
  (r"(blocks\.\d+)\.attn2\.to_out\.0\.", r"\1.cross_attn.o."),
  (r"(blocks\.\d+)\.attn2\.norm_", r"\1.cross_attn.norm_"),
  (r"(blocks\.\d+)\.norm2\.", r"\1.norm3."),
  (r"(blocks\.\d+)\.norm3\.", r"\1.norm2."),
  (r"(blocks\.\d+)\.ffn\.net\.0\.proj\.", r"\1.ffn.0."),
  (r"(blocks\.\d+)\.ffn\.net\.2\.", r"\1.ffn.2."),
  (r"scale_shift_table$", r"head.modulation"),
  (r"proj_out\.", r"head.head."),
)
_ONLY_DIFFUSERS = re.compile(r"condition_embedder\.|blocks\.\d+\.attn[12]\.")

# Prefixes that training code of the original leaves in checkpoints.
_WRAPPERS = re.compile(r"^model\.|_fsdp_wrapped_module\.")


class Target(NamedTuple):
  """Where a tensor goes.

  Attributes:
    path: Name of the parameter in `WanDiT`, with slashes.
    block: Index into the stacked leading axis; None outside of blocks.
    transform: From PyTorch's layout to ours.
  """

  path: str
  block: int | None
  transform: Transform


def target(name: str) -> Target | None:
  """Looks an original name up; None if the network has no such parameter."""
  found = re.match(r"blocks\.(0|[1-9]\d*)\.", name)
  block = int(found[1]) if found else None
  module, _, leaf = name.rpartition(".")
  module = re.sub(r"^blocks\.\d+", "N", module) + "."
  for pattern, path, leaves in _MODULES:
    match = re.fullmatch(pattern, module)
    if match and leaf in leaves and (block is not None) == (module[0] == "N"):
      ours, transform = leaves[leaf]
      return Target(match.expand(path) + ours, block, transform)
  return None


def to_wan_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Renames tensors to the original's names, without wrappers' prefixes.

  Args:
    tensors: Under names of the original, of training code around it, or of
      diffusers. Unknown names pass through.

  Returns:
    The same arrays under original names.

  Raises:
    ValueError: If two tensors have the same name in the end.
  """
  names = {name: _unwrapped(name) for name in tensors}
  if any(_ONLY_DIFFUSERS.match(name) for name in names.values()):
    names = {name: _from_diffusers(wan) for name, wan in names.items()}
  count = collections.Counter(names.values())
  twice = sorted(name for name in names if count[names[name]] > 1)
  if twice:
    raise ValueError(
      f"tensors {twice} share names once renamed to Wan's; give one network."
    )
  return {names[name]: x for name, x in tensors.items()}


def _unwrapped(name: str) -> str:
  return _WRAPPERS.sub("", _WRAPPERS.sub("", name))


def _from_diffusers(name: str) -> str:
  for pattern, replacement in _DIFFUSERS:
    renamed, matches = re.subn(f"^{pattern}", replacement, name)
    if matches:
      return renamed
  return name


def expected_shapes(config: wan.WanConfig) -> dict[str, Shape]:
  """Original names and PyTorch shapes of a network, spec/wan.md A7.

  Args:
    config: Sizes; attention counts as dense.
  """
  width, ffn, patch = config.width, config.ffn_width, config.patch
  inputs = config.channels * patch**2
  result: dict[str, Shape] = {
    "patch_embedding.weight": (width, config.channels, 1, patch, patch),
    "patch_embedding.bias": (width,),
    **_linear("time_embedding.0", config.freq_dim, width),
    **_linear("time_embedding.2", width, width),
    **_linear("time_projection.1", width, 6 * width),
    **_linear("text_embedding.0", config.text_dim, width),
    **_linear("text_embedding.2", width, width),
    "head.modulation": (1, 2, width),
    **_linear("head.head", width, inputs),
  }
  for n in range(config.num_layers):
    block = f"blocks.{n}"
    result[f"{block}.modulation"] = (1, 6, width)
    for attention in ("self_attn", "cross_attn"):
      for name in "qkvo":
        result |= _linear(f"{block}.{attention}.{name}", width, width)
      for name in ("norm_q", "norm_k"):
        result[f"{block}.{attention}.{name}.weight"] = (width,)
    result[f"{block}.norm3.weight"] = result[f"{block}.norm3.bias"] = (width,)
    result |= _linear(f"{block}.ffn.0", width, ffn)
    result |= _linear(f"{block}.ffn.2", ffn, width)
  return result


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
  return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def dense_arrays(
  config: wan.WanConfig, tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Brings a checkpoint into our layout.

  Args:
    config: Sizes of the network.
    tensors: Every tensor of the network, see `to_wan_names`.

  Returns:
    Float32 arrays under our names with slashes; those of blocks are stacked.

  Raises:
    ValueError: If names are unmatched, missing, or of another shape; the
      message lists all of them.
  """
  tensors = to_wan_names(tensors)
  _check(expected_shapes(config), tensors)
  arrays: dict[str, np.ndarray] = {}
  for name, tensor in tensors.items():
    place = target(name)
    assert place is not None, name
    value = place.transform(np.asarray(tensor))
    if place.block is None:
      arrays[place.path] = value.astype(np.float32)
      continue
    if place.path not in arrays:
      shape = (config.num_layers, *value.shape)
      arrays[place.path] = np.empty(shape, np.float32)
    arrays[place.path][place.block] = value
  return arrays


def _check(
  expected: Mapping[str, Shape], tensors: Mapping[str, np.ndarray]
) -> None:
  """Raises one error that lists every difference."""
  shapes = {name: tuple(np.shape(x)) for name, x in tensors.items()}
  wrong = [
    f"{name} {shapes[name]} instead of {expected[name]}"
    for name in sorted(expected.keys() & shapes.keys())
    if shapes[name] != expected[name]
  ]
  parts = {
    "unmatched": sorted(shapes.keys() - expected.keys()),
    "missing": sorted(expected.keys() - shapes.keys()),
    "mis-shaped": wrong,
  }
  listed = [f"{k}: {', '.join(v)}" for k, v in parts.items() if v]
  if listed:
    raise ValueError(
      f"tensors do not fit the network ({'; '.join(listed)}); use the config "
      "of the checkpoint's size."
    )


def load_dense(
  config: wan.WanConfig, tensors: Mapping[str, np.ndarray]
) -> wan.WanDiT:
  """Builds a dense network from a PyTorch checkpoint.

  Args:
    config: Sizes, with dense attention and without a learned grid.
    tensors: Every tensor of the network, see `to_wan_names`.

  Raises:
    ValueError: If the config has another architecture, or names or shapes
      differ; the message lists all of them.
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
  arrays = dense_arrays(config, tensors)
  model = nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))
  checkpoint.update_model(model, tree_names.nested_dict(arrays))
  return model
