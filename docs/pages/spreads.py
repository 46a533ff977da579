"""Writes means with their deviations, and which of them are beyond chance."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

START, END = "<!-- errors: start -->", "<!-- errors: end -->"
_ERRORS = 2  # of the mean
# What videos have that neither drift nor show where chunks begin.
_NOTHING = {
  "drift_brightness": 0.0,
  "drift_contrast": 0.0,
  "drift_saturation": 0.0,
  "drift_sharpness": 1.0,
  "chunk_jump": 0.0,
  "chunk_ratio": 1.0,
}


def beyond(lines: Sequence[Mapping[str, Any]]) -> str:
  """Lists the drifts and traces of chunks that are not within two errors.

  Args:
    lines: The record of `evaluate`; later lines replace earlier ones, and only
      those of models count.
  """
  columns = {x["checkpoint"]: x["summary"] for x in lines if "checkpoint" in x}
  rows = []
  for name, summary in columns.items():
    far = [
      _said(key, summary[key], nothing)
      for key, nothing in _NOTHING.items()
      if summary.get(key) and _distance(summary[key], nothing) > _ERRORS
    ]
    rows.append(f"- {name}: {', '.join(far) or 'none'}\n")
  return "".join(rows)


def spread(value: Mapping[str, float] | None) -> str:
  """Returns a mean and its deviation; nothing if there is none.

  Args:
    value: `mean` and `std`.
  """
  return "" if value is None else f"{value['mean']:.4f} ± {value['std']:.4f}"


def four(value: float | None) -> str:
  """Returns a number with four digits; nothing if there is none.

  Args:
    value: The number.
  """
  return "" if value is None else f"{value:.4f}"


def _error(value: Mapping[str, float]) -> float:
  return value["std"] / math.sqrt(value["n"])


def _distance(value: Mapping[str, float], nothing: float) -> float:
  """Returns how many errors of the mean lie between a mean and nothing."""
  away, error = abs(value["mean"] - nothing), _error(value)
  if error == 0:
    return math.inf if away else 0.0
  return away / error


def _said(key: str, value: Mapping[str, float], nothing: float) -> str:
  return (
    f"`{key}` {value['mean']:.4f} ± {_error(value):.4f}"
    f" ({_distance(value, nothing):.1f} errors)"
  )
