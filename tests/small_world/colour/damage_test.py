"""Tests of damage: PSNR, blur."""

import numpy as np
import pytest

from videomla_jax.small_world.colour import damage


@pytest.mark.parametrize("psnr", [28, 34, 40])
def test_damage_has_the_psnr_that_is_asked_for(psnr, seed):
  rng = np.random.default_rng(seed)
  # No pixel is near 0 or 255, where clipping would take error away.
  videos = rng.integers(100, 150, (2, 4, 32, 32, 3)).astype(np.uint8)
  damaged = damage.damage(rng, videos, psnr=psnr)
  assert damaged.dtype == np.float32
  square = np.square(damaged - videos / 255).mean((1, 2, 3, 4))
  # Blur and noise are independent of each other, but for chance.
  np.testing.assert_allclose(-10 * np.log10(square), psnr, atol=0.2)


def test_blur_keeps_the_mean_and_what_is_even():
  even = np.full((2, 16, 16, 1), 0.3)
  np.testing.assert_allclose(damage.blur(even, 1.2), even, rtol=1e-6)
  dot = np.zeros((1, 17, 17, 1))
  dot[0, 8, 8] = 1
  blurred = damage.blur(dot, 1.0)
  assert blurred.sum() == pytest.approx(1)
  place = np.arange(17) - 8
  variance = (blurred[0, :, :, 0].sum(1) * place**2).sum()
  assert variance == pytest.approx(1, abs=0.15)  # the tails are cut off
