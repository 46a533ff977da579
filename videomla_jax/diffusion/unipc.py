"""UniPC, the multistep solver of Wan's many-step sampling (arXiv:2302.04867).

Order 2, B(h) = e^h - 1, in terms of x0; docs/method.md, section 7.3. With
alpha = 1 - sigma, lambda = log(alpha / sigma) and h the step in lambda, every
step is linear in states and predictions. The weights follow from the noise
levels alone, so they are computed once, in float64 on the host, and a step is
two weighted sums:

  corrected = a start + b old + c older + d new     (the last step again)
  next      = a corrected + b new + c old           (the next step)
"""

import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

Frames = Float[Array, "b T H W C"]


class Weights(NamedTuple):
  """One row per network call; fields in the order of the module's docstring.

  Attributes:
    correct: Weights of start, old, older and new prediction, in the correction
      of the last step. The first row is not used.
    predict: Weights of corrected state, new and old prediction, in the next
      step.
  """

  correct: Float[np.ndarray | Array, "*K four"]
  predict: Float[np.ndarray | Array, "*K three"]


class History(NamedTuple):
  """What the solver remembers between two network calls.

  Attributes:
    start: Corrected state of the last call.
    old: x0 predicted at the last call.
    older: x0 predicted at the call before.
  """

  start: Frames
  old: Frames
  older: Frames


def weights(sigmas: tuple[float, ...]) -> Weights:
  """Computes all weights from the levels of the calls; 0 follows the last.

  The order is 2 except where a neighbour is missing: at the first step, and at
  the last, which lands on the predicted x0.

  Raises:
    ValueError: If a level is not below 1, where lambda is infinite.
  """
  if max(sigmas) >= 1:
    raise ValueError(
      f"sampler.sigmas={sigmas[:2]}... must stay below 1 for UniPC, which "
      "works in log(1 - sigma); start at 0.999 or use 'euler'."
    )
  # These are float64: differences of logarithms lose digits in float32.
  snr = [math.log((1 - s) / s) for s in sigmas]
  correct, predict = [(0.0, 0.0, 0.0, 0.0)], []
  for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
    h = snr[i + 1] - snr[i]
    ratio = (snr[i - 1] - snr[i]) / h if i else None
    # `expm1` keeps the digits that 1 - e^-h would lose where steps are short.
    growth = (1 - t) * -math.expm1(-h)  # alpha_t (1 - e^-h)
    predict.append(_predictor(t / s, growth, ratio))
    correct.append(_corrector(t / s, growth, ratio, h))
  # The last step lands on the predicted x0: level 0 has no finite lambda.
  predict.append((0.0, 1.0, 0.0))
  return Weights(np.asarray(correct), np.asarray(predict))


def _predictor(
  decay: float, growth: float, ratio: float | None
) -> tuple[float, float, float]:
  """Returns the weights of decay x + growth (m + (older - m) / (2 ratio)).

  Args:
    decay: Ratio of the noise levels, next to this one.
    growth: alpha_t (1 - e^-h), the share of the predictions.
    ratio: The last step in lambda over this one; None if there was none.
  """
  older = 0.0 if ratio is None else 0.5 / ratio
  return decay, growth * (1 - older), growth * older


def _corrector(
  decay: float, growth: float, ratio: float | None, h: float
) -> tuple[float, float, float, float]:
  """Returns the weights of the predictor with the new prediction added.

  Args:
    decay: Ratio of the noise levels, next to this one.
    growth: alpha_t (1 - e^-h), the share of the predictions.
    ratio: The last step in lambda over this one; None if there was none.
    h: The step in lambda.
  """
  older, new = 0.0, 0.5
  if ratio is not None:
    # The weights reproduce the first two moments of the exponential integral.
    phi = math.expm1(-h) / -h - 1
    psi = phi / -h - 0.5
    scale = math.expm1(-h)
    moments = np.asarray([phi / scale, 2 * psi / scale])
    older, new = np.linalg.solve([[1, 1], [ratio, 1]], moments)
    older /= ratio
  return decay, growth * (1 - older - new), growth * older, growth * new


def start(noise: Frames) -> History:
  """Returns a history before the first call, whose weights are zero."""
  return History(noise, jnp.zeros_like(noise), jnp.zeros_like(noise))


def step(
  x: Frames, x0: Frames, history: History, row: Weights, *, first: Array
) -> tuple[Frames, History]:
  """Corrects the last step with the new prediction, then takes the next one.

  Args:
    x: Latents that the network saw.
    x0: Clean latents that it predicted.
    history: What the last call left.
    row: Weights of this call.
    first: Whether this is the first call, which corrects nothing.

  Returns:
    Latents of the next call, and the history for it.
  """
  a, b, c, d = row.correct
  corrected = a * history.start + b * history.old + c * history.older + d * x0
  # One program serves all calls; the first has no step to correct.
  corrected = jnp.where(first, x, corrected)
  a, b, c = row.predict
  following = a * corrected + b * x0 + c * history.old
  return following, History(corrected, x0, history.old)
