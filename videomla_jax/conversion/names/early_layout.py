"""The layout in which VideoMLA's authors first published their layer.

Their parameters are applied as `x @ W` and fused: one matrix gives the latent
and the positional key, one gives queries and one gives keys and values, head by
head. Only the output projection lies the other way round, as PyTorch has it:

  W_q_downsampled  [E, d_q]                  norm_q_latent.weight  [d_q]
  W_q_upsampled    [d_q, N (d_n + d_r)]      per head: content, positional
  W_kv_downsampled [E, d_c + d_r]            latent, positional key
  W_kv_upsampled   [d_c, N (d_n + D)]        per head: content key, value
  W_o              [E, E]

Their cache holds the latent before its norm and ours holds it after, which are
the same numbers where they are used, so the gains keep their places.

Nobody outside has seen the files of the release. So the same layer is also read
with separate matrices, as linear layers (`.weight`, transposed), with biases,
and under the names that other code with latent attention uses. What a file then
still does not tell are the frequencies of the positional key.
"""

from collections.abc import Mapping
import re
from typing import NamedTuple

from videomla_jax.conversion.names import early_layer
from videomla_jax.conversion.names import wrappers
from videomla_jax.storage import lazy_tensor

type Tensors = Mapping[str, lazy_tensor.LazyTensor]
type Parts = dict[str, early_layer.Part]

_LAYER = re.compile(r"(?:.*\.)?blocks\.(\d+)\.self_attn\.(.+)")
# Our own names of latent attention, which are read as they are.
_OURS = re.compile(r"(?:.*\.)?blocks\.\d+\.self_attn\.w_dkv\.weight")

# Role -> names, as `_role` leaves them. A fused matrix may have the name of the
# first of its parts; the shape tells.
_ROLES: dict[str, tuple[str, ...]] = {
  "q_down": ("q_down", "q_a", "dq"),
  "q_up": ("q_up", "q_b", "q_nope", "q_content", "q_up_nope", "uq"),
  "q_rope": ("q_rope", "q_up_rope", "q_pe", "qr"),
  "kv_down": ("kv_down", "kv_a", "kv_a_with_mqa", "c_down", "dkv"),
  "k_rope": ("k_rope", "k_down_rope", "kv_rope", "k_pe", "kr"),
  "kv_up": ("kv_up", "kv_b"),
  "k_up": ("k_up", "k_nope", "k_content", "k_up_nope", "uk"),
  "v_up": ("v_up", "uv"),
  "out": ("o", "out"),
  "q_norm": ("norm_q", "q_norm", "q_a_layernorm"),
  "kv_norm": ("norm_kv", "kv_norm", "kv_a_layernorm", "norm_c", "c_norm"),
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}


class Translation(NamedTuple):
  """A network of this layout under our names.

  Attributes:
    tensors: All tensors of the file, those of its latent attention under the
      names of `names.dit`.
    num_heads: Heads, which the shapes of this layout tell.
  """

  tensors: dict[str, lazy_tensor.LazyTensor]
  num_heads: int


def translate(tensors: Tensors) -> Translation | None:
  """Renames and separates latent attention of this layout.

  Args:
    tensors: Tensors of a checkpoint under its own names.

  Returns:
    The same network under our names; None if it has another layout.

  Raises:
    ValueError: If a layer of this layout is incomplete or mixed with others, or
      its sizes do not fit together.
  """
  if any(_OURS.fullmatch(name) for name in tensors):
    return None
  layers, others = _layers(tensors)
  latent = [n for n, parts in layers.items() if "kv_down" in parts]
  if not latent:
    return None
  if dense := sorted(layers.keys() - set(latent)):
    raise ValueError(
      f"source has latent attention in blocks {latent[:4]} but not in blocks "
      f"{dense[:4]}; give a network that has it in all of them."
    )
  found = {
    n: early_layer.Layer(_name(n, parts), parts) for n, parts in layers.items()
  }
  biased = any(layer.has_down_bias for layer in found.values())
  for layer in found.values():
    others |= layer.tensors(down_bias=biased)
  return Translation(others, max(x.sizes.heads for x in found.values()))


def _layers(
  tensors: Tensors,
) -> tuple[dict[int, Parts], dict[str, lazy_tensor.LazyTensor]]:
  """Returns the parts of each layer by role, and all other tensors."""
  layers: dict[int, Parts] = {}
  others = {}
  for name, tensor in tensors.items():
    match = _LAYER.fullmatch(wrappers.without_private(name))
    if match:
      parts, role = layers.setdefault(int(match[1]), {}), _role(match[2])
      if role and role not in parts:
        parts[role] = early_layer.Part(name, tensor)
        continue
    others[name] = tensor
  return layers, others


def _name(n: int, parts: Parts) -> str:
  """Returns the name of layer n, with the prefix that the file has."""
  prefix = parts["kv_down"].name.partition("blocks.")[0]
  return f"{prefix}blocks.{n}.self_attn"


def _role(name: str) -> str | None:
  """Returns the role of a tensor, with "_bias" if it is a bias."""
  stem, bias = re.subn(r"[._]bias$", "", name.lower())
  stem = stem.removesuffix(".weight").split(".")[-1]
  stem, prefixed = re.subn(r"^b_", "", stem)
  # W_q_downsampled, W_q_down, q_down_proj and wq_down are one name.
  stem = re.sub(r"^w_?", "", stem).replace("sampled", "")
  stem = stem.replace("_proj", "").replace("_latent", "")
  role = _ROLE_OF.get(stem)
  return f"{role}_bias" if role and (bias or prefixed) else role
