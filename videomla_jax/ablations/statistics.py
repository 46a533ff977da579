"""Means of training seeds with intervals, and differences seed by seed."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import NamedTuple

# 97.5 % points of Student's t for 1, 2, ... degrees of freedom, rounded; from
# 30 on those of the normal distribution are within 4 %.
_POINTS = (
  *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
  *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
  *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045),
)
_NORMAL = 2.042  # of 30 degrees; more have less, so that intervals are no less


class Summary(NamedTuple):
  """Independent values as one.

  Attributes:
    mean: Their mean.
    deviation: Standard deviation of one value; NaN of a single one.
    values: How many there are.
    half: Half the width of the 95 % interval of the mean, by Student's t; NaN
      of a single one.
  """

  mean: float
  deviation: float
  values: int
  half: float

  @property
  def excludes_zero(self) -> bool:
    """Whether the interval lies on one side of zero."""
    return abs(self.mean) > self.half


def summarise(values: Sequence[float]) -> Summary:
  """Returns mean, deviation and interval of independent values.

  Args:
    values: At least one number, such as those of several training seeds.
  """
  n = len(values)
  mean = math.fsum(values) / n
  if n < 2:
    return Summary(mean, math.nan, n, math.nan)
  square = math.fsum((x - mean) ** 2 for x in values) / (n - 1)
  point = _POINTS[n - 2] if n - 2 < len(_POINTS) else _NORMAL
  return Summary(mean, math.sqrt(square), n, point * math.sqrt(square / n))


def differences(
  values: Mapping[int, float], base: Mapping[int, float]
) -> Summary | None:
  """Returns what a row has more than the base, seed by seed.

  What a seed does to both cancels, so the interval is narrower than that of two
  independent means if the seed matters.

  Args:
    values: The row's values by seed.
    base: The base's values by seed.

  Returns:
    The summary of the shared seeds; None if there are none.
  """
  shared = sorted({*values} & {*base})
  return summarise([values[s] - base[s] for s in shared]) if shared else None
