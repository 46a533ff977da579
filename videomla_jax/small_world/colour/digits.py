"""Handwriting of the colour world: the small world's digits, enlarged.

scikit-learn has each digit as 8 x 8 cells that count ink. A smooth enlargement
alone would fill the holes of 6, 8 and 9, so it is corrected until its own ink,
counted in the same cells, is that of the data: with E the interpolation, A the
mean over cells, s a soft step and x the data,

  z <- z + x - A s(E z),   z = x at first,                               (1)

as super-resolution by back projection does (Irani and Peleg, 1991). What comes
out is 19 to 21 px high and 5 to 15 px wide. Its samples lie half a pixel
apart: a digit that moves by parts of a pixel then keeps its sharpness.
"""

import functools
from typing import NamedTuple

from jaxtyping import Float, Float32, Int32, UInt8
import numpy as np

from videomla_jax.small_world import world

ROWS, COLUMNS = 44, 36  # samples of an enlarged digit, two a pixel
_CELL = (4.8, 4.0)  # samples of a cell; handwriting is taller than wide
_SOFTNESS = 0.35  # half the width of the soft step
_CORRECTIONS = 8  # more of them change the ink by less than a hundredth
FAINTEST = 12  # of 255; less is left out, so that a digit has a clear edge


class Digits(NamedTuple):
  """Enlarged handwriting of a split.

  Attributes:
    ink: Amount of ink in each sample, 0..255.
    label: Which digit it is, 0..9.
    first: First column and row with ink.
    last: Last column and row with ink.
    offset: Centroid of the ink (x, y) less the middle of its box, pixels.
  """

  ink: UInt8[np.ndarray, "n rows columns"]
  label: Int32[np.ndarray, "n"]
  first: Int32[np.ndarray, "n 2"]
  last: Int32[np.ndarray, "n 2"]
  offset: Float32[np.ndarray, "n 2"]


@functools.cache
def load(split: str) -> Digits:
  """Returns the handwriting of a split; all arrays are read-only.

  Args:
    split: "train" or "test", see `world.SPLITS`.

  Raises:
    ValueError: If there is no such split.
  """
  images, labels = world.load_sprites(split)
  ink = np.rint(enlarge(images) * 255).astype(np.uint8)
  ink[ink < FAINTEST] = 0
  first, last, offset = [], [], []
  for axis in (1, 2):  # the sum over rows leaves columns, x
    along = ink.sum(axis, dtype=np.int64)
    some = along > 0
    low = some.argmax(1)
    high = some.shape[1] - 1 - some[:, ::-1].argmax(1)
    mean = along @ np.arange(some.shape[1]) / along.sum(1)
    first.append(low)
    last.append(high)
    offset.append((mean - (low + high) / 2) / 2)
  result = Digits(
    ink,
    labels.astype(np.int32),
    np.stack(first, -1).astype(np.int32),
    np.stack(last, -1).astype(np.int32),
    np.stack(offset, -1).astype(np.float32),
  )
  for array in result:
    array.setflags(write=False)  # cached, thus shared by every caller
  return result


def enlarge(
  images: Float32[np.ndarray, "n 8 8"],
) -> Float[np.ndarray, "n rows columns"]:
  """Returns images whose cells hold the ink of smaller images, Eq. (1).

  Args:
    images: Share of ink of every cell, 0..1.
  """
  shape = (ROWS, COLUMNS)
  up = [_cubic(n, cell) for n, cell in zip(shape, _CELL)]
  mean = [_overlap(n, cell) for n, cell in zip(shape, _CELL)]
  target = images.astype(np.float64)
  latent = target
  for _ in range(_CORRECTIONS):
    latent = latent + target - mean[0] @ _inked(latent, up) @ mean[1].T
  return _inked(latent, up)


def _inked(
  latent: Float[np.ndarray, "n 8 8"], up: list[Float[np.ndarray, "_ 8"]]
) -> Float[np.ndarray, "n rows columns"]:
  """Interpolates, then makes ink of what exceeds a half, by a soft step."""
  smooth = up[0] @ latent @ up[1].T
  step = np.clip((smooth - 0.5) / (2 * _SOFTNESS) + 0.5, 0, 1)
  return step * step * (3 - 2 * step)


def _cubic(samples: int, cell: float) -> Float[np.ndarray, "samples 8"]:
  """Returns the cubic convolution of Keys (1981), with a = -1/2."""
  place = (np.arange(samples) - (samples - 1) / 2) / cell + 3.5
  x = np.abs(place[:, None] - np.arange(8))
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _overlap(samples: int, cell: float) -> Float[np.ndarray, "8 samples"]:
  """Returns the share of each cell that each sample covers."""
  edge = (np.arange(samples + 1) - samples / 2) / cell + 4
  cells = np.arange(8)[:, None]
  shared = np.minimum(edge[1:], cells + 1) - np.maximum(edge[:-1], cells)
  return np.maximum(shared, 0.0)
