import jax.numpy as jnp
import numpy as np

from videomla_jax.models import vae
from videomla_jax.small_world import codecs


def test_pixel_codec_keeps_every_pixel(seed: int) -> None:
  codec = codecs.PixelCodec()
  video = np.random.default_rng(seed).integers(0, 256, (2, 3, 8, 12, 1))
  latents = codec.encode(jnp.asarray(video, jnp.uint8))
  assert latents.shape == (2, 3, 2, 3, codec.channels)
  assert float(jnp.abs(latents).max()) <= 1
  decoded = codec.decode(latents)
  np.testing.assert_array_equal(np.rint(255 * decoded), video)


def test_pixel_codec_is_a_codec() -> None:
  codec = codecs.PixelCodec(block=2, pixel_channels=3)
  assert isinstance(codec, vae.Codec)
  latents = jnp.zeros((1, 1, 2, 2, codec.channels))
  pixels, state = codec.decode_chunk(latents, codec.start(1, 2, 2))
  assert pixels.shape == (1, 1, 4, 4, 3)
  assert state == ()
