"""AdamW and Muon with their schedule, and the checks of their settings."""

from collections.abc import Callable
import math

import jax
from jaxtyping import PyTree
import optax
from optax import contrib

from videomla_jax.training import settings as settings_lib

SCHEDULES = ("constant", "cosine")
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
  "learning_rate": (lambda x: 0 < x < math.inf, "positive and finite"),
  "matrix_rate": (lambda x: 0 <= x < math.inf, "at least 0 and finite"),
  "eps": (lambda x: 0 < x < math.inf, "positive and finite"),
  "clip_norm": (lambda x: x > 0, "positive"),
  "weight_decay": (lambda x: 0 <= x < math.inf, "at least 0 and finite"),
  "final_fraction": (lambda x: 0 <= x <= 1, "from 0 to 1"),
  "warmup_steps": (lambda x: x >= 0, "at least 0"),
  "b1": (lambda x: 0 <= x < 1, "from 0 to below 1"),
  "b2": (lambda x: 0 <= x < 1, "from 0 to below 1"),
}


def make_optimiser(
  settings: settings_lib.Optim, *, learning_rate: float | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Builds AdamW or Muon with warm-up and clipping by the global norm.

  Args:
    settings: Group `optim` of a config.
    learning_rate: Highest learning rate of a second network; that of the
      settings by default.

  Returns:
    The optimiser, and the learning rate of each step.

  Raises:
    ValueError: If the schedule is unknown.
  """
  peak = settings.learning_rate if learning_rate is None else learning_rate
  warmup = settings.warmup_steps
  # None says that it does not fall; `unused.check` asks a cosine for a number.
  last = peak * (settings.final_fraction or 0.0)
  schedules = {
    "cosine": lambda: optax.warmup_cosine_decay_schedule(
      0.0, peak, warmup, settings.steps, last
    ),
    # optax's own version stays at 0 for ever without a warm-up.
    "constant": lambda: (
      optax.warmup_constant_schedule(0.0, peak, warmup)
      if warmup
      else optax.constant_schedule(peak)
    ),
  }
  if settings.schedule not in schedules:
    raise ValueError(
      f"optim.schedule={settings.schedule!r} is unknown; use one of "
      f"{SCHEDULES}."
    )
  schedule = schedules[settings.schedule]()
  if settings.matrix_rate:
    return optax.chain(
      optax.clip_by_global_norm(settings.clip_norm), _muon(settings, schedule)
    ), schedule
  # The order of AdamW: weights decay by the learning rate, and their decay is
  # no part of the gradient that is clipped.
  optimiser = optax.chain(
    optax.clip_by_global_norm(settings.clip_norm),
    _adam(settings),
    optax.add_decayed_weights(settings.weight_decay),
    optax.scale_by_learning_rate(schedule),
  )
  return optimiser, schedule


def _adam(settings: settings_lib.Optim) -> optax.GradientTransformation:
  """Builds Adam's direction; without momentum it stores no first moment."""
  if settings.b1:
    return optax.scale_by_adam(settings.b1, settings.b2, settings.eps)
  # This saves as much memory as the parameters take, for each network. The
  # options make the second moment that of Adam.
  return optax.scale_by_rms(
    settings.b2, settings.eps, eps_in_sqrt=False, bias_correction=True
  )


def _muon(
  settings: settings_lib.Optim, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Builds Muon for kernels, and AdamW for gains, constants and words.

  Muon (Jordan, 2024) makes all directions of a gradient equally long. A kernel
  is a matrix from all that one output sees to the channels of the output. Both
  look ahead by Nesterov's momentum.
  """
  ratio = settings.matrix_rate / settings.learning_rate

  def matrices(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(_matrix, params)

  return contrib.muon(
    learning_rate=lambda step: ratio * schedule(step),
    adam_learning_rate=schedule,
    adam_b1=settings.b1,
    adam_b2=settings.b2,
    eps=settings.eps,
    weight_decay=settings.weight_decay,
    muon_weight_dimension_numbers=matrices,
  )


def _matrix(
  path: tuple[object, ...], x: jax.Array
) -> contrib.MuonDimensionNumbers | None:
  """Says which axes of a parameter are rows and columns of its matrix."""
  names = [getattr(key, "key", None) for key in path]
  if "kernel" not in names:
    return None
  # Blocks of a DiT are stacked along the first axis, one matrix for each.
  axes = range(1, x.ndim) if "blocks" in names else range(x.ndim)
  *seen, channels = axes
  return contrib.MuonDimensionNumbers(tuple(seen), (channels,))


def check(settings: settings_lib.Optim) -> None:
  """Refuses values that cannot train.

  Args:
    settings: Group `optim` of a config.

  Raises:
    ValueError: With the field, the rule and the way out.
  """
  if settings.steps <= settings.warmup_steps:
    raise ValueError(
      f"optim.steps={settings.steps} must exceed "
      f"warmup_steps={settings.warmup_steps}; train longer."
    )
  make_optimiser(settings)
  for name, (fits, rule) in _RANGES.items():
    value = getattr(settings, name, None)
    # NaN fits nowhere, since it compares as false.
    if value is not None and not fits(value):
      raise ValueError(
        f"optim.{name}={value} must be {rule}; see configs/common.py."
      )
  if settings.accumulate < 1:
    raise ValueError(
      f"optim.accumulate={settings.accumulate} must be at least 1; 1 takes the "
      "batch in one piece."
    )
  if not 0 <= settings.ema_decay < 1:
    raise ValueError(
      f"optim.ema_decay={settings.ema_decay} must be from 0 to below 1; 0 "
      "keeps no average."
    )
