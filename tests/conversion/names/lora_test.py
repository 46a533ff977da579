"""Tests of the names that a LoRA has for a layer."""

import pytest

from tests import tiny_release
from videomla_jax.conversion.names import lora

_KEYS = {
  "blocks.1.ffn.0.lora_A.weight": ("blocks.1.ffn.0", "down"),
  "x.blocks.1.ffn.0.lora_A": ("blocks.1.ffn.0", "down"),
  "m.blocks.1.self_attn.k.lora_B.my-adapter_2.weight": (
    "blocks.1.self_attn.k",
    "up",
  ),
  "m.blocks.1.self_attn.k.lora_B.default.bias": (
    "blocks.1.self_attn.k",
    "up_bias",
  ),
  "m.blocks.1.self_attn.k.lora_B.bias": ("blocks.1.self_attn.k", "up_bias"),
  "lora_unet_blocks_1_cross_attn_o.lora_up.weight": (
    "blocks.1.cross_attn.o",
    "up",
  ),
  "lora_unet_time_projection_1.alpha": ("time_projection.1", "alpha"),
  "lora_unet_text_embedding_2.lora_down.weight": ("text_embedding.2", "down"),
  "lora_transformer_blocks_0_attn2_to_out_0.lora_down.weight": (
    "blocks.0.cross_attn.o",
    "down",
  ),
  "transformer.condition_embedder.time_proj.lora_B.weight": (
    "time_projection.1",
    "up",
  ),
  "transformer.proj_out.lora.up.weight": ("head.head", "up"),
  "transformer.blocks.0.attn1.processor.to_q_lora.down.weight": (
    "blocks.0.self_attn.q",
    "down",
  ),
  "transformer.blocks.1.norm2.diff_b": ("blocks.1.norm3", "diff_bias"),
  "diffusion_model.blocks.1.norm3.diff": ("blocks.1.norm3", "diff"),
  "lora_unet_blocks_0_norm3.b_norm": ("blocks.0.norm3", "diff_bias"),
  "diffusion_model.blocks.1.diff_m": ("blocks.1.modulation", "diff"),
  "diffusion_model.head.modulation.diff": ("head.modulation", "diff"),
}


@pytest.mark.parametrize("key", _KEYS)
def test_keys_name_a_layer_and_a_kind(key: str) -> None:
  table = tiny_release.dit_table()
  adapters, unmatched = lora.match([key], table, file="x")
  assert not unmatched
  layer, kind = _KEYS[key]
  assert adapters.keys() == {layer} and adapters[layer].keys == {kind: key}


@pytest.mark.parametrize(
  "key",
  [
    "blocks.2.ffn.0.lora_A.weight",  # the network has two blocks
    "blocks.1.ffn.0.weight",
    "blocks.1.ffn.0.lora_C.weight",
    "blocks.1.ffn.01.lora_A.weight",
    "single_transformer_blocks.0.proj_out.lora_A.weight",  # another network's
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
    "blocks_1.ffn.0.lora_A.weight",
  ],
)
def test_other_keys_are_unmatched(key: str) -> None:
  table = tiny_release.dit_table()
  adapters, unmatched = lora.match([key], table, file="x")
  assert not adapters and unmatched == [key]


def test_adapters_of_two_networks_in_one_file_are_refused() -> None:
  keys = [
    f"{prefix}.blocks.{n}.ffn.0.lora_A.weight"
    for n, prefix in enumerate(("high_noise", "low_noise"))
  ]
  with pytest.raises(ValueError, match="adapters of several networks"):
    lora.match(keys, tiny_release.dit_table(), file="x")
