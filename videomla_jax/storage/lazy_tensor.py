"""A tensor in a file, which is read when its values are asked for."""

from collections.abc import Callable
import math
from typing import NamedTuple

import numpy as np


class LazyTensor(NamedTuple):
  """Shape and type of a tensor in a file, and how to read it.

  Attributes:
    shape: Shape as the file has it.
    dtype: Type of the numbers as the file has them.
    read: Returns the values; every call reads the file again.
    span: Bytes of the file between its first and its last number, where they
      are not side by side.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
  span: int = 0

  @property
  def nbytes(self) -> int:
    """Bytes of all values."""
    return math.prod(self.shape) * self.dtype.itemsize
