"""Tests of checkpoints of other families, which are refused by name."""

from typing import Any

import pytest

from tests import tiny_release
from videomla_jax.conversion.names import detect
from videomla_jax.conversion.names import vae as vae_names

_WIDTH = tiny_release.DIT.width


def _dit(**others: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
  tensors = tiny_release.dit_table().tensors
  return {n: t.shape for n, t in tensors.items()} | others


def _more_channels(channels: int, width: int = _WIDTH) -> dict[str, Any]:
  return _dit(**{"patch_embedding.weight": (width, channels, 1, 2, 2)})


_OTHERS = {
  "VACE": _dit(**{"vace_blocks.0.before_proj.weight": (64, 64)}),
  "FLF2V": _dit(**{"img_emb.emb_pos": (1, 4), "img_emb.proj.0.weight": (64,)}),
  r"Wan2\.1-I2V": _dit(**{"img_emb.proj.0.weight": (64,)}),
  r"I2V .image to video": _dit(**{"blocks.0.cross_attn.k_img.bias": (64,)}),
  "Fun-Control": _dit(
    **{"ref_conv.weight": (64, 4, 2, 2), "img_emb.proj.0.weight": (64,)}
  ),
  "Wan2.2-I2V-A14B": _more_channels(9),
  "S2V": _dit(**{"casual_audio_encoder.encoder.x.weight": (4, 4)}),
  "Animate": _dit(**{"pose_patch_embedding.weight": (64, 4, 1, 2, 2)}),
  "SkyReels": _dit(**{"fps_embedding.weight": (2, 64)}),
  "a LoRA": {
    "diffusion_model.blocks.0.self_attn.q.lora_A.weight": (4, 64),
    "diffusion_model.blocks.0.self_attn.q.lora_B.weight": (64, 4),
  },
  "LoRA, which": {"lora_unet_blocks_0_self_attn_q.lora_down.weight": (4, 64)},
  "LoRA, which is": {"blocks.0.self_attn.q.lora_A.default.weight": (4, 64)},
  "tiny decoder of the larger kind": {
    "decoder.1.conv.3.weight": (512, 2048, 1, 1)
  },
  "HunyuanVideo": {"double_blocks.0.img_attn.qkv.weight": (4, 4)},
  "VAE of images": {"encoder.conv_in.weight": (128, 3, 3, 3)},
  r"VAE of Wan2\.2-TI2V-5B": {
    n: (s if n != "encoder.conv1.weight" else (160, 12, 3, 3, 3))
    for n, s in (
      (n, t.shape)
      for n, t in vae_names.table_of(tiny_release.VAE).tensors.items()
    )
  },
}


@pytest.mark.parametrize("words", _OTHERS)
def test_other_families_are_refused_by_name(words: str) -> None:
  with pytest.raises(ValueError, match=f"^source is .*{words}") as info:
    detect.detect(_OTHERS[words], num_heads=4)
  assert len(str(info.value)) < 250


def test_wan_2_2_5b_is_told_by_its_sizes() -> None:
  shapes = {
    "patch_embedding.weight": (3072, 48, 1, 2, 2),
    "head.head.weight": (192, 3072),
    **{f"blocks.{i}.modulation": (1, 6, 3072) for i in range(30)},
  }
  with pytest.raises(ValueError, match=r"source is Wan2\.2-TI2V-5B"):
    detect.detect(shapes)


@pytest.mark.parametrize("number", ["100", "256", "9" * 4000, "999999999999"])
def test_block_numbers_are_bounded(number: str) -> None:
  shapes = _dit(**{f"blocks.{number}.norm3.weight": (64,)})
  with pytest.raises(ValueError, match="at most 256 blocks") as info:
    detect.detect(shapes, num_heads=4)
  assert len(str(info.value)) < 200


@pytest.mark.parametrize("shape", [(), (1,), (64, 4), (1,) * 9])
@pytest.mark.parametrize(
  "name",
  [
    "patch_embedding.weight",
    "blocks.0.ffn.0.weight",
    "blocks.0.self_attn.w_dkv.weight",
  ],
)
def test_shapes_of_another_kind_are_refused(name: str, shape: Any) -> None:
  with pytest.raises(ValueError, match="known here|do not fit|must be below"):
    shapes = _dit(**{name: shape})
    detect.detect(shapes, num_heads=4).table.originals(shapes)
