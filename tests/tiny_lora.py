"""LoRAs of a tiny network in the usual sets of names."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests import tiny_release
from videomla_jax.conversion.names import dit as dit_names

Arrays = dict[str, np.ndarray]
RANK = 3


class Format(NamedTuple):
  """How one project names a LoRA: a layer, its halves, and alpha if any."""

  layer: Callable[[str], str]
  down: str
  up: str
  alpha: str = ""


def _diffusers(layer: str) -> str:
  return dit_names.to_diffusers(f"{layer}.weight").removesuffix(".weight")


FORMATS = {
  "peft": Format(
    lambda n: f"base_model.model.{n}", ".lora_A.weight", ".lora_B.weight"
  ),
  "peft_named": Format(
    lambda n: f"base_model.model.{n}",
    ".lora_A.default.weight",
    ".lora_B.default.weight",
  ),
  "comfyui": Format(
    lambda n: f"diffusion_model.{n}",
    ".lora_down.weight",
    ".lora_up.weight",
    ".alpha",
  ),
  "kohya": Format(
    lambda n: "lora_unet_" + n.replace(".", "_"),
    ".lora_down.weight",
    ".lora_up.weight",
    ".alpha",
  ),
  "diffusers": Format(
    lambda n: f"transformer.{_diffusers(n)}",
    ".lora_A.weight",
    ".lora_B.weight",
  ),
  "old_diffusers": Format(
    lambda n: f"transformer.{_diffusers(n)}",
    ".lora.down.weight",
    ".lora.up.weight",
  ),
  "compiled": Format(
    lambda n: f"model.diffusion_model._orig_mod.{n}",
    ".lora_A.weight",
    ".lora_B.weight",
  ),
}
LAYERS = (
  "blocks.0.self_attn.q",
  "blocks.1.self_attn.o",
  "blocks.1.cross_attn.k",
  "blocks.0.ffn.0",
  "blocks.1.ffn.2",
  "time_embedding.0",
  "head.head",
)


def draw(
  rng: np.random.Generator,
  format_name: str,
  *,
  layers: tuple[str, ...] = LAYERS,
  alpha: float = 1.5,
) -> tuple[Arrays, Arrays]:
  """A LoRA as its file has it, and what it adds to each original tensor."""
  names, table = FORMATS[format_name], tiny_release.dit_table()
  file, added = {}, {}
  for layer in layers:
    shape = table.tensors[f"{layer}.weight"].shape
    inputs = int(np.prod(shape[1:]))
    down = rng.standard_normal((RANK, inputs), np.float32)
    up = rng.standard_normal((shape[0], RANK), np.float32)
    # A convolution has its window in the first half.
    window = (1,) * (len(shape) - 2)
    module = names.layer(layer)
    file[module + names.down] = down.reshape(RANK, *shape[1:])
    file[module + names.up] = up.reshape(shape[0], RANK, *window)
    factor = 1.0
    if names.alpha:
      file[module + names.alpha] = np.asarray(alpha, np.float32)
      factor = alpha / RANK
    product = up.astype(np.float64) @ down.astype(np.float64)
    added[f"{layer}.weight"] = factor * product.reshape(shape)
  return file, added
