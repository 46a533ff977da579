"""Operators of keys and values, and their singular values.

docs/method.md, section 16.1. Dense attention makes keys and values of its input
by one matrix, [W_k; W_v]. Latent attention does so through the content latent,
[W_uk; W_uv] diag(g) W_dkv with the gain g of the latent's norm, so its rank is
at most d_c. Everything is computed in float64.
"""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from videomla_jax.conversion import moments
from videomla_jax.models import layers

Spectrum = Float[np.ndarray, "values"]  # singular values, descending


class Operator(NamedTuple):
  """A matrix, or a product of two.

  Attributes:
    down: W, or W_dkv.
    up: [W_uk; W_uv] diag(g); None where there is one matrix only.
  """

  down: Float[np.ndarray, "r E"]
  up: Float[np.ndarray, "out r"] | None = None

  @property
  def size(self) -> int:
    """The highest rank that the operator can have."""
    return min(self.down.shape)

  def spectrum(self) -> Spectrum:
    """Returns all singular values; of a product, as many as its rank allows."""
    if self.up is None:
      # Twelve times as fast as a singular value decomposition. Values below
      # 1e-7 of the largest are rounding, and no energy depends on them.
      return _roots(self.down.T @ self.down)[: self.size]
    # With U = Q_u R_u and Dᵀ = Q_d R_d, U D has the values of R_u R_dᵀ, which
    # is as small as the latent.
    up, down = _triangle(self.up), _triangle(self.down.T)
    return np.linalg.svd(up @ down.T, compute_uv=False)


def operator_of(parameters: Mapping[str, np.ndarray]) -> Operator:
  """Returns what makes keys and values of a layer's input.

  Args:
    parameters: Parameters of `DenseSelfAttention` or `LatentSelfAttention`,
      names with slashes, matrices as `[in, out]`.
  """
  rows = lambda *names: np.concatenate(
    [np.asarray(parameters[f"{n}/kernel"], np.float64).T for n in names]
  )
  if "w_dkv/kernel" not in parameters:
    return Operator(rows("key", "value"))
  gain = np.asarray(parameters["content_norm/gain"], np.float64)
  return Operator(rows("w_dkv"), rows("w_uk", "w_uv") * gain)


def spectrum_on(
  parameters: Mapping[str, np.ndarray], tokens: moments.Tokens
) -> Spectrum:
  """Returns the singular values of centred keys and values on real inputs.

  They are divided by the square root of the number of tokens, so their squares
  are variances. The latent passes its norm, as it does in the network; keys of
  dense attention are taken before theirs.

  Args:
    parameters: As in `operator_of`.
    tokens: Inputs of the layer.
  """
  operator = operator_of(parameters)
  x = np.asarray(tokens, np.float64) @ operator.down.T
  if operator.up is None:
    # Keys and values have twice as many channels as the input has directions.
    return _deviations(x)[: operator.size]
  if "w_dkv/bias" in parameters:
    x += parameters["w_dkv/bias"]
  x /= np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + layers.EPSILON)
  return _deviations(x @ _triangle(operator.up).T)


def _triangle(x: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "m r"]:
  """Returns R of the decomposition Q R, which has the singular values of x."""
  return np.asarray(np.linalg.qr(x, mode="r"))


def _deviations(y: Float[np.ndarray, "n d"]) -> Spectrum:
  """Returns the square roots of the eigenvalues of a covariance."""
  y = y - y.mean(axis=0)
  # Of many tokens the covariance is smaller than they are.
  gram = y.T @ y if y.shape[0] > y.shape[1] else y @ y.T
  return _roots(gram / len(y))


def _roots(gram: Float[np.ndarray, "n n"]) -> Spectrum:
  """Returns the roots of the eigenvalues of a Gram matrix, descending."""
  values = np.linalg.eigvalsh(gram)[::-1]
  # Rounding makes eigenvalues that should be zero slightly negative.
  return np.sqrt(np.maximum(values, 0))
