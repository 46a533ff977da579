"""Tests of convolutions: all forms add up the same products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.ops import convolution


def _slow(frames: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
  """The definition in float64: one product for each offset of a window."""
  half = kernel.shape[1] // 2
  sides = [(0, 0), (0, 0), (half, half), (half, half), (0, 0)]
  padded = np.pad(frames.astype(np.float64), sides)
  height, width = frames.shape[2:4]
  last = frames.shape[1] - 2
  return sum(
    padded[:, t : t + last : stride, p : p + height, q : q + width]
    @ kernel[t, p, q].astype(np.float64)
    for t, p, q in np.ndindex(kernel.shape[:3])
  )


@pytest.mark.parametrize("form", convolution.FORMS)
@pytest.mark.parametrize(("side", "stride"), [(3, 1), (1, 1), (1, 2)])
@pytest.mark.parametrize("channels", [6, 20])
def test_every_form_is_the_definition(
  form, side, stride, channels, seed
) -> None:
  rng = np.random.default_rng(seed)
  frames = tiny_model.normal(rng, 2, 5, 4, 3, channels)
  kernel = tiny_model.normal(rng, 3, side, side, channels, 5)
  chosen = convolution.FORMS[form]

  @jax.jit
  def run(frames, kernel):
    laid_out = chosen.lay_out(kernel)
    return chosen.apply(frames, laid_out, stride=stride)[..., :5]

  expected = _slow(np.asarray(frames), np.asarray(kernel), stride)
  tolerances.assert_close(run(frames, kernel), expected)


def test_doubled_frames_equal_repeated_pixels(seed: int) -> None:
  rng = np.random.default_rng(seed)
  x = tiny_model.normal(rng, 2, 3, 4, 5, 6)
  kernel = tiny_model.normal(rng, 3, 3, 6, 7)

  @jax.jit
  def both(x, kernel):
    repeated = x.repeat(2, axis=2).repeat(2, axis=3)
    return convolution.of_doubled_frames(x, kernel), convolution.of_frames(
      repeated, kernel
    )

  tolerances.assert_close(*both(x, kernel))


def test_gradients_of_doubled_frames_are_those_of_repeated_pixels(seed) -> None:
  rng = np.random.default_rng(seed)
  x = tiny_model.normal(rng, 2, 3, 4, 5, 6)
  kernel = tiny_model.normal(rng, 3, 3, 6, 7)
  weights = tiny_model.normal(rng, 2, 3, 8, 10, 7)

  def repeated(x, kernel):
    return convolution.of_frames(x.repeat(2, axis=2).repeat(2, axis=3), kernel)

  def gradients(function):
    loss = lambda x, kernel: (weights * function(x, kernel)).sum()
    return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel)

  found = gradients(convolution.of_doubled_frames)
  for a, b in zip(found, gradients(repeated), strict=True):
    tolerances.assert_close(a, b)


def test_channels_are_filled_up_to_eights() -> None:
  kernel = jnp.ones((3, 3, 3, 3, 17))
  laid_out = convolution.FORMS["volume"].lay_out(kernel)
  assert laid_out.shape == (3, 3, 3, 8, 24)
  assert float(laid_out.sum()) == kernel.size


def test_a_platform_names_a_form() -> None:
  assert convolution.form_for("gpu") == "volume"
  assert {convolution.form_for(p) for p in ("cpu", "tpu")} == {"sum"}
