"""Predicted temporaries of decoders; tests/aot compares them with programs."""

import dataclasses

import pytest

from videomla_jax.costs import decoder_memory
from videomla_jax.models import tiny_decoder
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.models import vae_tiling
from videomla_jax.small_world import codecs

_FRAME = 480 * 832 * 96 * 2  # bytes at the largest resolution, in bfloat16


def _bytes(decoder, frame=(60, 104), latents=3, videos=1, platform="gpu"):
  return decoder_memory.temporaries(
    decoder, videos=videos, frame=frame, latents=latents, platform=platform
  )


def _wan(**changes):
  return vae.abstract(vae_coders.wan_vae(dtype="bfloat16", **changes))


def test_the_widest_layer_holds_residual_frames_and_output() -> None:
  # Twelve frames each, and two of the past.
  assert _bytes(_wan()) == 38 * _FRAME
  assert _bytes(_wan(), videos=2) == 76 * _FRAME
  # One latent frame at a time, with laid out weights and pixels beside it.
  spare = _bytes(_wan(spare_memory=True))
  assert 14 * _FRAME < spare < 17 * _FRAME
  # Two groups of two are held like one.
  assert _bytes(_wan(), latents=4) > _bytes(_wan(), latents=2)


def test_tiles_need_less_than_the_frame() -> None:
  whole = _wan()
  tiled = vae_tiling.TiledVAE(whole, tile=24)
  assert _bytes(tiled) < _bytes(whole) / 3


def test_the_tiny_decoder_needs_a_fifth() -> None:
  sizes = tiny_decoder.TinyDecoderConfig(dtype="bfloat16")
  assert _bytes(tiny_decoder.abstract(sizes)) < _bytes(_wan()) / 5


@pytest.mark.parametrize("form", ["sum", "channels"])
def test_other_forms_need_more_for_each_frame(form: str) -> None:
  spare = _wan(spare_memory=True)
  other = vae.abstract(dataclasses.replace(spare.config, convolution=form))
  assert _bytes(other) > 1.4 * _bytes(spare)
  assert _bytes(other, platform="cpu") == _bytes(other)


def test_of_other_decoders_nothing_is_known() -> None:
  assert _bytes(codecs.PixelCodec()) == 0
