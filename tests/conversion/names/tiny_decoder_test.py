"""Tests of the tiny decoder's names."""

import numpy as np
import pytest

from tests import tiny_release
from videomla_jax.conversion.names import detect
from videomla_jax.conversion.names import tiny_decoder as names
from videomla_jax.models import tiny_decoder
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

_SIZES = {
  "published": tiny_decoder.TinyDecoderConfig(),
  "narrow": tiny_decoder.tiny(),
  "patches": tiny_decoder.tiny(patch=2, channels=6, temporal=(True,) * 3),
}


def test_table_has_the_published_names() -> None:
  table = names.table_of(_SIZES["published"])
  shapes = {name: x.shape for name, x in table.tensors.items()}
  assert len(shapes) == 64  # docs/method.md, section 4.8
  assert shapes.keys() >= {"decoder.1.bias", "decoder.5.conv.4.bias"}
  for name, shape in {
    "decoder.1.weight": (256, 16, 3, 3),
    "decoder.3.conv.0.weight": (256, 512, 3, 3),
    "decoder.7.conv.weight": (256, 256, 1, 1),
    "decoder.8.weight": (128, 256, 3, 3),
    "decoder.11.conv.2.weight": (128, 128, 3, 3),
    "decoder.13.conv.weight": (256, 128, 1, 1),
    "decoder.14.weight": (64, 128, 3, 3),
    "decoder.19.conv.weight": (128, 64, 1, 1),
    "decoder.20.weight": (64, 64, 3, 3),
    "decoder.22.weight": (3, 64, 3, 3),
  }.items():
    assert shapes[name] == shape
  assert not {"decoder.8.bias", "decoder.7.conv.bias"} & shapes.keys()
  encoder = table.unused
  assert len(encoder) == 64 and "encoder.16.conv.4.bias" in encoder
  assert {"encoder.0.weight", "encoder.17.bias", "encoder.13.weight"} < encoder


@pytest.mark.parametrize("size", _SIZES)
def test_table_fills_every_parameter_once(size: str) -> None:
  model = tiny_decoder.abstract(_SIZES[size])
  leaves = tree_names.flat_dict(model_folder.model_arrays(model))
  assert names.table_of(_SIZES[size]).our_shapes() == {
    path: leaf.shape for path, leaf in leaves.items()
  }


@pytest.mark.parametrize("size", _SIZES)
def test_sizes_are_told_from_shapes(size: str) -> None:
  table = names.table_of(_SIZES[size])
  shapes = {name: x.shape for name, x in table.tensors.items()}
  found = detect.detect(shapes)
  assert (found.config, found.left_out) == (_SIZES[size], ())
  encoder = dict.fromkeys(table.unused, (1,))
  both = {f"module.{n}": s for n, s in (shapes | encoder).items()}
  assert detect.detect(both).left_out == tuple(sorted(table.unused))
  assert len(found.table.originals(both)) == len(shapes)


def test_writing_inverts_reading_bit_for_bit(seed: int) -> None:
  table = names.table_of(_SIZES["patches"])
  tensors = tiny_release.draw(table, np.random.default_rng(seed))
  written = table.write(table.read(tensors))
  assert written.keys() == tensors.keys()
  for name, x in written.items():
    np.testing.assert_array_equal(x, tensors[name])


def test_what_is_no_tiny_decoder_is_refused() -> None:
  table = names.table_of(_SIZES["narrow"])
  shapes = {name: x.shape for name, x in table.tensors.items()}
  large = {"decoder.1.conv.3.weight": (512, 2048, 1, 1)}
  with pytest.raises(ValueError, match="tiny decoder of the larger kind"):
    detect.detect(shapes | large)
  shapes.pop("decoder.14.weight")
  network = detect.detect(shapes)
  with pytest.raises(ValueError, match=r"1 missing: decoder\.14\.weight"):
    network.table.originals(shapes)
  stranger = shapes | {"encoder.18.weight": (1,)}
  with pytest.raises(ValueError, match=r"1 unmatched: encoder\.18\.weight"):
    detect.detect(stranger).table.originals(stranger)
