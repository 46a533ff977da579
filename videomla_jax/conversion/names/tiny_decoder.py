"""Names of the tiny decoder, TAEHV: docs/method.md, section 4.8.

Its layers lie in one flat list, activations and repeated pixels among them, so
the numbers of layers with weights have gaps.
"""

import itertools

from videomla_jax.conversion.names import layout as layout_lib
from videomla_jax.conversion.names import tensor_table
from videomla_jax.models import tiny_decoder

Tensors = dict[str, tensor_table.Tensor]

# Behind the bound of the latents, the first convolution and its activation come
# the layers of each resolution: blocks, repeated pixels, more frames, and the
# convolution to the next resolution.
_FIRST = 3
_LAYERS = tiny_decoder.NUM_BLOCKS + 3

# Convolutions of a block, between which activations lie.
_BLOCK = {"conv.0": "conv_in", "conv.2": "conv_middle", "conv.4": "conv_out"}


def conv_in() -> str:
  """Returns the name of the weight that reads the latents."""
  return "decoder.1.weight"


def block(level: int) -> str:
  """Returns the name of the first weight of a resolution."""
  return f"decoder.{_FIRST + _LAYERS * level}.conv.0.weight"


def grow(level: int) -> str:
  """Returns the name of the weight that makes more frames of a resolution."""
  return f"decoder.{_FIRST + _LAYERS * level + _LAYERS - 2}.conv.weight"


def leave(level: int) -> str:
  """Returns the name of the weight behind a resolution."""
  return f"decoder.{_FIRST + _LAYERS * level + _LAYERS - 1}.weight"


def conv_out(levels: int) -> str:
  """Returns the name of the weight that makes pixels.

  Args:
    levels: Number of resolutions.
  """
  return f"decoder.{_FIRST + _LAYERS * levels + 1}.weight"


def _kernel(name: str, path: str, inputs: int, outputs: int) -> Tensors:
  shape = (outputs, inputs, 3, 3)
  return {name: tensor_table.Tensor(shape, f"{path}/kernel", layout_lib.KERNEL)}


def _conv(name: str, path: str, inputs: int, outputs: int) -> Tensors:
  bias = f"{name.removesuffix('.weight')}.bias"
  return _kernel(name, path, inputs, outputs) | {
    bias: tensor_table.Tensor((outputs,), f"{path}/bias")
  }


def _blocks(level: int, width: int) -> Tensors:
  """Returns the tensors of the blocks of a resolution."""
  tensors: Tensors = {}
  for i in range(tiny_decoder.NUM_BLOCKS):
    name = f"decoder.{_FIRST + _LAYERS * level + i}"
    for theirs, ours in _BLOCK.items():
      inputs = 2 * width if ours == "conv_in" else width
      path = f"resolutions/{level}/blocks/{i}/{ours}"
      tensors |= _conv(f"{name}.{theirs}.weight", path, inputs, width)
  return tensors


def _encoder() -> frozenset[str]:
  """Returns the names of the encoder, which lies in the same files.

  It is a convolution, three resolutions and a convolution. Each resolution has
  a layer that joins frames, a convolution, and three blocks.
  """
  kinds = ("weight", "bias")
  names = {f"encoder.{i}.{k}" for i in (0, 17) for k in kinds}
  for at in (2, 7, 12):
    names |= {f"encoder.{at}.conv.weight", f"encoder.{at + 1}.weight"}
    names |= {
      f"encoder.{at + 2 + i}.{conv}.{kind}"
      for i in range(3)
      for conv in _BLOCK
      for kind in kinds
    }
  return frozenset(names)


def table_of(config: tiny_decoder.TinyDecoderConfig) -> tensor_table.Table:
  """Returns all tensors of a tiny decoder.

  Args:
    config: Sizes of the decoder.
  """
  widths, levels = config.widths, len(config.widths) - 1
  tensors = _conv(conv_in(), "conv_in", config.channels, widths[0])
  for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
    frames = 2 if config.temporal[i] else 1
    tensors |= _blocks(i, inputs)
    tensors[grow(i)] = tensor_table.Tensor(
      (frames * inputs, inputs, 1, 1),
      f"resolutions/{i}/grow/kernel",
      layout_lib.POINTWISE,
    )
    tensors |= _kernel(leave(i), f"resolutions/{i}/conv", inputs, outputs)
  pixels = 3 * config.patch**2
  tensors |= _conv(conv_out(levels), "conv_out", widths[-1], pixels)
  return tensor_table.Table(tensors=tensors, unused=_encoder())


def config_of(
  shapes: dict[str, tensor_table.Shape],
) -> tiny_decoder.TinyDecoderConfig:
  """Returns the sizes of a tiny decoder, as its shapes tell them.

  Args:
    shapes: PyTorch shapes of its tensors by name.
  """
  usual = tiny_decoder.TinyDecoderConfig()
  levels = len(usual.widths) - 1

  def shape(name: str, default: tensor_table.Shape) -> tensor_table.Shape:
    # A default may be wrong. Then the table does not fit, and the message says
    # what is missing.
    found = shapes.get(name, default)
    return found if len(found) == len(default) else default

  stem = shape(conv_in(), (usual.widths[0], usual.channels, 3, 3))
  widths, temporal = [stem[0]], []
  for i in range(levels):
    grown = shape(grow(i), (widths[i], widths[i], 1, 1))
    temporal.append(grown[0] == 2 * grown[1])
    widths.append(shape(leave(i), (usual.widths[i + 1], widths[i], 3, 3))[0])
  pixels = shape(conv_out(levels), (3, widths[-1], 3, 3))[0]
  # Every published one doubles rows and columns three times.
  return tiny_decoder.TinyDecoderConfig(
    channels=stem[1],
    widths=tuple(widths),
    temporal=tuple(temporal),
    patch=max(1, round((pixels / 3) ** 0.5)),
  )
