import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_project
from videomla_jax.models import vae
from videomla_jax.small_world import model as small_model
from videomla_jax.small_world import prompts


def test_pixel_codec_keeps_every_pixel(seed: int) -> None:
  codec = small_model.PixelCodec()
  video = np.random.default_rng(seed).integers(0, 256, (2, 3, 8, 12, 1))
  latents = codec.encode(jnp.asarray(video, jnp.uint8))
  assert latents.shape == (2, 3, 2, 3, codec.channels)
  assert float(jnp.abs(latents).max()) <= 1
  decoded = codec.decode(latents)
  np.testing.assert_array_equal(np.rint(255 * decoded), video)


def test_pixel_codec_is_a_codec() -> None:
  codec = small_model.PixelCodec(block=2, pixel_channels=3)
  assert isinstance(codec, vae.Codec)
  latents = jnp.zeros((1, 1, 2, 2, codec.channels))
  pixels, state = codec.decode_chunk(latents, codec.start(1, 2, 2))
  assert pixels.shape == (1, 1, 4, 4, 3)
  assert state == ()


def test_padding_has_no_embedding() -> None:
  model = small_model.load("shipped:small_latent")
  tokens = np.array([[1, prompts.PADDING, 2, prompts.PADDING]])
  norms = np.abs(model.encode_text(jnp.asarray(tokens))).sum(-1)[0]
  assert (norms[1::2] == 0).all() and (norms[::2] > 0).all()


def test_only_folders_of_small_models_are_taken_for_them(
  tmp_path: pathlib.Path,
) -> None:
  folder = small_model.checkpoint_path("shipped:small_latent")
  assert small_model.is_model(folder)
  assert not small_model.is_model(tmp_path)
  with pytest.raises(ValueError, match="shipped are"):
    small_model.checkpoint_path("shipped:nothing")


def test_configs_of_earlier_versions_have_wans_ladder() -> None:
  fresh = dataclasses.replace(
    tiny_project.video_config("latent"), rope_ladder="fresh"
  )
  assert fresh.network.attention.rope_ladder == "fresh"
  stored = fresh.to_dict()
  assert small_model.VideoModelConfig.from_dict(stored) == fresh
  del stored["rope_ladder"]
  older = small_model.VideoModelConfig.from_dict(stored)
  assert older.network.attention.rope_ladder == "wan"
  with pytest.raises(ValueError, match="is of latent attention"):
    dataclasses.replace(fresh, kind="dense")
