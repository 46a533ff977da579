"""A tensor in a file, which is read when its values are asked for."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class LazyTensor(NamedTuple):
  """Shape and type of a tensor in a file, and how to read it.

  Attributes:
    shape: Shape as the file has it.
    dtype: Type of the numbers as the file has them.
    read: Returns the values; every call reads the file again.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
