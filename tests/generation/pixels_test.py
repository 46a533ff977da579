"""Tests of arrays of pixels."""

import numpy as np
import pytest

from videomla_jax.generation import pixels


def test_to_uint8_rounds_and_clips() -> None:
  values = np.array([-1.0, 0.0, 0.5, 1.0, 2.0], np.float32)
  assert pixels.to_uint8(values).tolist() == [0, 0, 128, 255, 255]
  every = np.arange(256, dtype=np.float32)
  bytes_ = pixels.fetch(pixels.start_copy(pixels.to_uint8(every / 255)))
  assert isinstance(bytes_, np.ndarray) and bytes_.dtype == np.uint8
  np.testing.assert_array_equal(bytes_, every)


@pytest.mark.parametrize(
  ("shape", "scale", "large"),
  [
    ((3, 4, 1), 1, (4, 4, 3)),
    ((3, 4, 3), 2, (6, 8, 3)),
    ((1, 1, 1), 3, (4, 4, 3)),
  ],
)
def test_enlarged_frames_have_even_sides_and_three_channels(
  shape: tuple[int, ...], scale: int, large: tuple[int, ...], seed: int
) -> None:
  rng = np.random.default_rng(seed)
  frame = rng.integers(0, 256, shape, dtype=np.uint8)
  enlarged = pixels.enlarge(frame, scale)
  assert enlarged.shape == large
  for y, x in np.ndindex(shape[0] * scale, shape[1] * scale):
    assert (enlarged[y, x] == frame[y // scale, x // scale]).all()
  # What was added repeats the edge.
  np.testing.assert_array_equal(
    enlarged[-1, 0], np.broadcast_to(frame[-1, 0], 3)
  )


@pytest.mark.parametrize("shape", [(2, 8, 8, 2), (2, 8, 0, 1)])
def test_frames_that_no_screen_shows_are_refused(
  shape: tuple[int, ...],
) -> None:
  with pytest.raises(ValueError, match="move the channels"):
    pixels.check_frames(np.zeros(shape, np.uint8))
