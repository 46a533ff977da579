"""How the axes of a tensor of PyTorch lie in ours."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
  """A change of layout, which only moves or reshapes axes.

  Attributes:
    to_ours: Brings an array from PyTorch's layout into ours.
    to_torch: Brings it back, given PyTorch's shape.
  """

  to_ours: Callable[[np.ndarray], np.ndarray]
  to_torch: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _kernel(x: np.ndarray) -> np.ndarray:
  """Moves `[out, in, *window]` to `[*window, in, out]`."""
  return np.moveaxis(x, (0, 1), (-1, -2))


SAME = Layout(lambda x: x, lambda x, shape: x.reshape(shape))

# Linear layers go from [out, in] to [in, out], convolutions to
# [*window, in, out].
KERNEL = Layout(_kernel, lambda x, _: np.moveaxis(x, (-1, -2), (0, 1)))

# A convolution of one pixel, whose window has axes of length one in PyTorch.
POINTWISE = Layout(
  lambda x: x.reshape(x.shape[:2]).T, lambda x, shape: x.T.reshape(shape)
)

# A convolution whose stride is its window is a product: it goes from
# [out, in, *window] to [in * window, out], input channels slowest.
PATCHES = Layout(
  lambda x: x.reshape(x.shape[0], -1).T, lambda x, shape: x.T.reshape(shape)
)

# Drops axes of length one, which PyTorch needs for broadcasting.
SQUEEZED = Layout(np.squeeze, lambda x, shape: x.reshape(shape))
