"""How close two computations must be, and why: the only place with numbers."""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tolerance:
  """A bound on max|a - b| / max|b|, perhaps one on max|a - b|, and why."""

  bound: float
  reason: str
  absolute: float = math.inf


TOLERANCES: dict[str, Tolerance] = {
  "exact": Tolerance(bound=0.0, reason="same operations in the same order"),
  "float32": Tolerance(
    bound=1e-5,
    reason="sums of a few hundred float32 products in another order",
  ),
  "float32_deep": Tolerance(
    bound=1e-4,
    reason="rounding carried through many blocks or denoising steps",
  ),
  "float32_gradient": Tolerance(
    bound=5e-5,
    reason="the backward pass sums over tokens as well as channels",
  ),
  # The absolute bounds stand in the notes that come with the goldens.
  "golden": Tolerance(
    bound=1e-5,
    absolute=1e-5,
    reason="another framework's float32 products, same formula",
  ),
  # Another run has other weights, and its outputs may be of any size.
  "peer": Tolerance(
    bound=1e-5,
    reason="another framework's float32 products on fresh random weights",
  ),
  "golden_rotation": Tolerance(
    bound=5e-7,
    absolute=5e-7,
    reason="angles of float64, products of float32",
  ),
  "golden_noised": Tolerance(
    bound=1e-6,
    absolute=1e-6,
    reason="two products of float32 and their sum",
  ),
  "golden_x0": Tolerance(
    bound=2e-6,
    absolute=2e-6,
    reason="one product more than noising",
  ),
  "golden_table": Tolerance(
    bound=1e-6,
    absolute=1e-3,
    reason="timesteps up to 1000, rounded to float32",
  ),
  "bfloat16": Tolerance(
    bound=2e-2,
    reason="8 bits of mantissa: 2^-8 per rounding, a few roundings",
  ),
  "int8_cache": Tolerance(
    bound=2e-2,
    reason="a cached scalar is off by 2^-8 of the largest of its token",
  ),
  "float8_e4m3fn_cache": Tolerance(
    bound=1e-1, reason="a cached scalar is off by 2^-4 of itself"
  ),
  "float8_products": Tolerance(
    bound=1e-1,
    reason="inputs and weights of all products are off by 2^-4 of themselves, "
    "in errors that average out over the sums",
  ),
  "bfloat16_step": Tolerance(
    bound=2e-2,
    reason="|a - b| / |b| over all tokens of a pass or of a chunk: roundings of "
    "bfloat16 are carried through all layers, and partly average out",
  ),
  "bfloat16_deep": Tolerance(
    bound=5e-2,
    reason="bfloat16 rounding carried through all layers of a network",
  ),
}


def relative_error(a: ArrayLike, b: ArrayLike) -> float:
  """Returns max|a - b| / max|b|, or max|a| where b is zero."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  assert a.shape == b.shape, f"shapes differ: {a.shape} and {b.shape}"
  if not a.size:
    return 0.0
  if not (np.isfinite(a).all() and np.isfinite(b).all()):
    return float("inf")
  largest = np.abs(b).max()
  return float(np.abs(a - b).max() / (largest if largest > 0 else 1.0))


def assert_close(a: ArrayLike, b: ArrayLike, kind: str = "float32") -> None:
  """Asserts that `a` is as close to the reference `b` as `kind` demands."""
  error, tolerance = relative_error(a, b), TOLERANCES[kind]
  assert error <= tolerance.bound, (
    f"relative error {error:.3g} exceeds {tolerance.bound:g} ({kind}:"
    f" {tolerance.reason})"
  )
  if math.isinf(tolerance.absolute):
    return
  difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
  largest = np.abs(difference).max(initial=0.0)
  assert largest <= tolerance.absolute, (
    f"error {largest:.3g} exceeds {tolerance.absolute:g} ({kind}:"
    f" {tolerance.reason})"
  )
