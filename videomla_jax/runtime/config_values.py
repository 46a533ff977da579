"""What values of config keys may be, beyond their Python types.

A field says it in its annotation, and `config_reader` applies it:

  seed: config_values.Seed
  num_steps: Annotated[int, config_values.Range(1, 1000)]
  checkpoint: config_values.Path
"""

import dataclasses
from typing import Annotated

from videomla_jax.storage import paths


@dataclasses.dataclass(frozen=True)
class Range:
  """Refuses numbers outside a range; None passes where the type allows it.

  Attributes:
    least: Smallest number.
    most: Largest number.
  """

  least: float | int
  most: float | int

  def __call__[T](self, value: T, name: str) -> T:
    """Returns the value.

    Args:
      value: What the user wrote.
      name: Key of the config.

    Raises:
      ValueError: If it lies outside.
    """
    if value is None or not isinstance(value, (int, float)):
      return value
    if value < self.least:
      raise ValueError(
        f"{name}={value!r} must be at least {self.least}; use that or more."
      )
    if value > self.most:
      raise ValueError(
        f"{name}={value!r} must be at most {self.most}; use that or less."
      )
    return value


# Random keys of JAX have 32 bits of a seed: of a larger one they would silently
# be those of another seed.
MAX_SEED = 2**32 - 1

Seconds = Annotated[float | int, Range(0, 7 * 24 * 3600)]  # at most a week
Seed = Annotated[int, Range(0, MAX_SEED)]
Path = Annotated[str, paths.local]
