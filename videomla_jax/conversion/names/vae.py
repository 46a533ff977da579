"""Names of the Wan VAE: those of the original code and those of diffusers.

docs/method.md, section 4.7.
"""

import re

import numpy as np

from videomla_jax.conversion.names import layout as layout_lib
from videomla_jax.conversion.names import tensor_table
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.models import vae_layers as layers

# Only PyTorch gives axes of length one to gains.
_GAIN = layout_lib.Layout(np.ravel, lambda x, shape: x.reshape(shape))

Tensors = dict[str, tensor_table.Tensor]


def _conv(
  name: str, path: str, inputs: int, outputs: int, window: tuple[int, ...]
) -> Tensors:
  pointwise = set(window) == {1}
  layout = layout_lib.POINTWISE if pointwise else layout_lib.KERNEL
  shape = (outputs, inputs, *window)
  return {
    f"{name}.weight": tensor_table.Tensor(shape, f"{path}/kernel", layout),
    f"{name}.bias": tensor_table.Tensor((outputs,), f"{path}/bias"),
  }


def _causal(name: str, path: str, inputs: int, outputs: int) -> Tensors:
  return _conv(name, path, inputs, outputs, (3, 3, 3))


def _gain(name: str, path: str, features: int, *, axes: int = 3) -> Tensors:
  shape = (features, *(1,) * axes)
  return {f"{name}.gamma": tensor_table.Tensor(shape, f"{path}/gain", _GAIN)}


def _residual(name: str, path: str, inputs: int, outputs: int) -> Tensors:
  tensors = {
    **_gain(f"{name}.residual.0", f"{path}/norm_in", inputs),
    **_causal(f"{name}.residual.2", f"{path}/conv_in", inputs, outputs),
    **_gain(f"{name}.residual.3", f"{path}/norm_out", outputs),
    **_causal(f"{name}.residual.6", f"{path}/conv_out", outputs, outputs),
  }
  if inputs != outputs:
    short = (f"{name}.shortcut", f"{path}/shortcut")
    tensors |= _conv(*short, inputs, outputs, (1, 1, 1))
  return tensors


def _attention(name: str, path: str, width: int) -> Tensors:
  return {
    **_gain(f"{name}.norm", f"{path}/norm", width, axes=2),
    **_conv(f"{name}.to_qkv", f"{path}/qkv", width, 3 * width, (1, 1)),
    **_conv(f"{name}.proj", f"{path}/out", width, width, (1, 1)),
  }


def _middle(name: str, path: str, width: int) -> Tensors:
  path = f"{path}/layers"
  return {
    **_residual(f"{name}.0", f"{path}/0", width, width),
    **_attention(f"{name}.1", f"{path}/1", width),
    **_residual(f"{name}.2", f"{path}/2", width, width),
  }


def _chain(name: str, path: str, chain: layers.Chain) -> Tensors:
  """Returns the tensors of layers, which say themselves what they are."""
  tensors: Tensors = {}
  for i, layer in enumerate(chain.layers):
    names = (f"{name}.{i}", f"{path}/layers/{i}")
    if isinstance(layer, layers.Residual):
      tensors |= _residual(*names, *layer.conv_in.kernel.shape[-2:])
      continue
    assert not isinstance(layer, layers.FrameAttention)  # in the middle only
    sizes = layer.frame_conv.kernel.shape[-2:]
    pair = (f"{names[0]}.resample.1", f"{names[1]}/frame_conv")
    tensors |= _conv(*pair, *sizes, (3, 3))
    if layer.time_conv is not None:
      sizes = layer.time_conv.kernel.shape[-2:]
      pair = (f"{names[0]}.time_conv", f"{names[1]}/time_conv")
      tensors |= _conv(*pair, *sizes, (3, 1, 1))
  return tensors


# These lead from original names to those of diffusers; every match is replaced,
# in this order.
_TO_DIFFUSERS = (
  (r"^conv1\.", "quant_conv."),
  (r"^conv2\.", "post_quant_conv."),
  (r"coder\.conv1\.", "coder.conv_in."),
  (r"coder\.head\.0\.", "coder.norm_out."),
  (r"coder\.head\.2\.", "coder.conv_out."),
  (r"\.residual\.0\.", ".norm1."),
  (r"\.residual\.2\.", ".conv1."),
  (r"\.residual\.3\.", ".norm2."),
  (r"\.residual\.6\.", ".conv2."),
  (r"\.shortcut\.", ".conv_shortcut."),
  (r"\.middle\.0\.", ".mid_block.resnets.0."),
  (r"\.middle\.1\.", ".mid_block.attentions.0."),
  (r"\.middle\.2\.", ".mid_block.resnets.1."),
  (r"\.downsamples\.", ".down_blocks."),
)


def _to_diffusers(name: str, *, blocks: int) -> str:
  """Returns the name that diffusers gives to an original tensor.

  Args:
    name: Original name.
    blocks: Residual blocks per resolution of the decoder.
  """
  for pattern, replacement in _TO_DIFFUSERS:
    name = re.sub(pattern, replacement, name)
  found = re.match(r"decoder\.upsamples\.(\d+)\.(.*)", name)
  if not found:
    return name
  # The original code has the layers of all resolutions in one list, while
  # diffusers has a list for each.
  level, layer = divmod(int(found[1]), blocks + 1)
  kind = f"resnets.{layer}" if layer < blocks else "upsamplers.0"
  return f"decoder.up_blocks.{level}.{kind}.{found[2]}"


def table_of(config: vae_coders.VaeConfig) -> tensor_table.Table:
  """Returns all tensors of a VAE.

  Args:
    config: Sizes of the VAE.
  """
  # The module knows its layers: nothing about resolutions is repeated here.
  model = vae.abstract(config)
  width = config.width * config.multipliers[-1]
  z, first = config.channels, config.width * config.multipliers[0]
  tensors = {
    **_causal("encoder.conv1", "encoder/conv_in", 3, config.width),
    **_chain("encoder.downsamples", "encoder/down", model.encoder.down),
    **_middle("encoder.middle", "encoder/middle", width),
    **_gain("encoder.head.0", "encoder/norm_out", width),
    **_causal("encoder.head.2", "encoder/conv_out", width, 2 * z),
    **_conv("conv1", "quant", 2 * z, 2 * z, (1, 1, 1)),
    **_conv("conv2", "post_quant", z, z, (1, 1, 1)),
    **_causal("decoder.conv1", "decoder/conv_in", z, width),
    **_middle("decoder.middle", "decoder/middle", width),
    **_chain("decoder.upsamples", "decoder/up", model.decoder.up),
    **_gain("decoder.head.0", "decoder/norm_out", first),
    **_causal("decoder.head.2", "decoder/conv_out", first, 3),
  }

  def to_diffusers(name: str) -> str:
    return _to_diffusers(name, blocks=config.num_blocks + 1)

  return tensor_table.Table(
    tensors=tensors, formats={"diffusers": to_diffusers}
  )
