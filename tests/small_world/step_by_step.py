"""Motion between two walls, by single units: what closed forms must equal."""

import numpy as np


def simulate(
  start: int, velocity: int, num_steps: int, reach: int
) -> list[int]:
  """Moves a point by single units and turns it round at the walls.

  Args:
    start: Where it is first, 0 to `reach`.
    velocity: Units a step.
    num_steps: Positions to return.
    reach: Where the second wall is; the first one is at 0.
  """
  position, sense, path = start, int(np.sign(velocity)), []
  for _ in range(num_steps):
    path.append(position)
    for _ in range(abs(velocity)):
      if not 0 <= position + sense <= reach:
        sense = -sense
      position += sense
  return path
