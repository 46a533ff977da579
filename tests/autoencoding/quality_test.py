"""Measures of a VAE on clips whose errors are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from tests.autoencoding import tiny_vae
from videomla_jax.autoencoding import quality


def test_psnr_is_that_of_a_known_error(seed) -> None:
  rng = np.random.default_rng(seed)
  video = jnp.asarray(rng.uniform(0.2, 0.8, (3, 2, 4, 4, 3)), jnp.float32)
  sign = jnp.asarray(rng.choice([-1.0, 1.0], video.shape), jnp.float32)
  scale = jnp.asarray([0.1, 0.01, 0.0])[:, None, None, None, None]
  found = quality.psnr(video + scale * sign, video)
  tolerances.assert_close(found, np.array([20.0, 40.0, 100.0]), "float32_deep")


@pytest.mark.parametrize("stride", [2, 4])
def test_a_seam_is_seen_where_the_error_jumps_at_cuts(seed, stride) -> None:
  rng = np.random.default_rng(seed)
  frames = 1 + 3 * stride
  video = jnp.asarray(rng.uniform(0, 1, (2, frames, 4, 4, 3)), jnp.float32)
  noise = 0.01 * rng.standard_normal(video.shape)
  even = quality.seam(video + noise, video, stride=stride)
  assert 0.7 < even < 1.4
  # Every latent frame has an error of its own on top.
  group = (np.arange(frames) + stride - 1) // stride
  jumps = rng.choice([-0.3, 0.3], (group.max() + 1)) * (-1.0) ** np.arange(4)
  jumping = (
    noise
    + np.abs(jumps)[group, None, None, None]
    * np.where(group % 2, 1, -1)[:, None, None, None]
  )
  assert quality.seam(video + jumping, video, stride=stride) > 10


def test_latents_have_mean_0_and_deviation_1_afterwards(seed) -> None:
  rng = np.random.default_rng(seed)
  vae = tiny_vae.build(seed % 1000, mean=(0.5, 0.0, -1.0), std=(2.0, 0.5, 1.0))
  clips = [tiny_vae.video(rng) for _ in range(3)]
  changed = quality.with_statistics(vae, clips)
  latents = np.concatenate([changed.encode(x) for x in clips])
  tolerances.assert_close(
    latents.mean((0, 1, 2, 3)), np.zeros(3), "float32_deep"
  )
  tolerances.assert_close(latents.std((0, 1, 2, 3)), np.ones(3), "float32_deep")
  # Pixels do not know of it, and neither does the VAE that was given.
  video = clips[0]
  tolerances.assert_close(
    changed.decode(changed.encode(video)),
    vae.decode(vae.encode(video)),
    "float32_deep",
  )
  assert vae.config.mean == (0.5, 0.0, -1.0)


def test_chunks_are_decoded_as_the_whole_clip_is(seed) -> None:
  rng = np.random.default_rng(seed)
  vae = tiny_vae.build(seed % 1000)
  found = quality.measure(vae, [tiny_vae.video(rng, frames=11)])
  # Cutting changes nothing but the order of sums, on some processors.
  assert found.chunked < 1e-5
  assert np.isfinite(found.psnr) and np.isfinite(found.seam)
