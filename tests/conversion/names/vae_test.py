"""Tests of the VAE's names."""

import math

import numpy as np
import pytest

from videomla_jax.conversion.names import vae as names
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names


def test_table_counts_the_published_network() -> None:
  tensors = names.table_of(vae_coders.wan_vae()).tensors
  assert len(tensors) == 194
  parameters = sum(math.prod(t.shape) for t in tensors.values())
  assert parameters == 126_892_531


@pytest.mark.parametrize("make", [vae_coders.wan_vae, vae_coders.tiny_vae])
def test_table_fills_every_parameter_once(make) -> None:
  config = make()
  model = vae.abstract(config)
  leaves = tree_names.flat_dict(model_folder.model_arrays(model))
  assert names.table_of(config).our_shapes() == {
    path: leaf.shape for path, leaf in leaves.items()
  }


@pytest.mark.parametrize("format_name", ["original", "diffusers"])
def test_writing_inverts_reading_bit_for_bit(format_name, seed: int) -> None:
  rng = np.random.default_rng(seed)
  table = names.table_of(vae_coders.tiny_vae())
  originals = table.names(format_name)
  tensors = {
    name: rng.standard_normal(table.tensors[original].shape, np.float32)
    for name, original in originals.items()
  }
  assert len(tensors) == len(table.tensors)
  written = table.write(table.read(tensors), format_name=format_name)
  assert written.keys() == tensors.keys()
  for name, x in written.items():
    np.testing.assert_array_equal(x, tensors[name])


@pytest.mark.parametrize(
  ("original", "diffusers"),
  [  # docs/method.md, section 4.7
    ("conv1.weight", "quant_conv.weight"),
    ("decoder.conv1.bias", "decoder.conv_in.bias"),
    (
      "encoder.downsamples.6.shortcut.weight",
      "encoder.down_blocks.6.conv_shortcut.weight",
    ),
    (
      "encoder.downsamples.5.time_conv.bias",
      "encoder.down_blocks.5.time_conv.bias",
    ),
    (
      "decoder.middle.1.to_qkv.weight",
      "decoder.mid_block.attentions.0.to_qkv.weight",
    ),
    (
      "decoder.upsamples.13.residual.3.gamma",
      "decoder.up_blocks.3.resnets.1.norm2.gamma",
    ),
    (
      "decoder.upsamples.7.resample.1.weight",
      "decoder.up_blocks.1.upsamplers.0.resample.1.weight",
    ),
    ("encoder.head.0.gamma", "encoder.norm_out.gamma"),
  ],
)
def test_names_are_those_of_diffusers(original: str, diffusers: str) -> None:
  found = names.table_of(vae_coders.wan_vae()).names("diffusers")
  assert found[diffusers] == original
