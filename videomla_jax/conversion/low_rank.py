"""Best low-rank factors of a matrix, for inputs of a given covariance.

docs/method.md, Eq. (14.3). For W [out, in] and inputs with second moment M the
product U D of rank r that minimises E |W x - U D x|^2 is W S V V^T S^-1, where
S = M^(1/2) and V holds the r leading eigenvectors of S W^T W S (the theorem of
Eckart and Young in the metric of M). The latent D x = V^T S^-1 x has unit
covariance, whatever the spectrum of W, so its length hardly varies from token
to token, as the RMSNorm behind it needs. M = I is the plain truncated SVD.
Everything is computed in float64.
"""

from typing import NamedTuple

from jaxtyping import Float
import numpy as np

Matrix = Float[np.ndarray, "out in"]
# Share of the mean variance that is added to every direction: directions that
# the samples hardly show must not be trusted.
_SHRINKAGE = 1e-3


class Factors(NamedTuple):
  """Holds a product U D of rank r.

  Attributes:
    up: U, which carries the singular values.
    down: D, which makes a latent of unit covariance from the inputs.
    spectrum: All singular values of W S, descending.
  """

  up: Float[np.ndarray, "out r"]
  down: Float[np.ndarray, "r in"]
  spectrum: Float[np.ndarray, "n"]


class Metric(NamedTuple):
  """Holds the square root S of a second moment M, and its inverse.

  Attributes:
    root: S; None stands for the identity.
    inverse: S^-1; None stands for the identity.
  """

  root: Float[np.ndarray, "in in"] | None
  inverse: Float[np.ndarray, "in in"] | None

  def spread(
    self, down: Float[np.ndarray, "r in"]
  ) -> Float[np.ndarray, "in r"]:
    """Returns M D^T; W times it is the best U for a white latent D x."""
    return down.T if self.root is None else self.root @ self.root @ down.T

  def share(self, rows: Matrix, up: Float[np.ndarray, "out r"]) -> float:
    """Returns the energy of U D x, D x being white, against that of W x.

    Args:
      rows: W.
      up: U.
    """
    whole = rows if self.root is None else rows @ self.root
    total = np.square(whole).sum()
    return float(np.square(up).sum() / total) if total else 1.0


PLAIN = Metric(None, None)  # nothing is known of the inputs: M = I


def metric(moment: Float[np.ndarray, "in in"]) -> Metric:
  """Returns the metric of a second moment, with a little of I added.

  Args:
    moment: M, or a covariance.
  """
  return Metric(*_roots(moment))


def _roots(
  moment: Float[np.ndarray, "n n"],
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
  """Returns the square root of a moment and the inverse of the root."""
  moment = np.asarray(moment, np.float64)
  floor = _SHRINKAGE * np.trace(moment) / len(moment)
  # `eigh` reads one triangle only, and rounding may have made the two differ.
  values, vectors = np.linalg.eigh((moment + moment.T) / 2)
  roots = np.sqrt(np.maximum(values, 0) + floor)
  return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def factorise(matrix: Matrix, rank: int, *, inputs: Metric = PLAIN) -> Factors:
  """Returns the leading factors of a matrix.

  Args:
    matrix: W, with weights of the rows applied.
    rank: Rank r of the product.
    inputs: Metric of the inputs.

  Raises:
    ValueError: If the rank is not between 1 and the smaller side.
  """
  if not 1 <= rank <= min(matrix.shape):
    raise ValueError(
      f"rank={rank} of a matrix of {matrix.shape} must be between 1 and "
      f"{min(matrix.shape)}; choose d_c and d_q in these bounds."
    )
  weighted = np.asarray(matrix, np.float64)
  if inputs.root is not None:
    weighted = weighted @ inputs.root
  # The size of W^T W is the number of inputs, however many heads W stacks.
  values, vectors = np.linalg.eigh(weighted.T @ weighted)
  # `eigh` sorts eigenvalues upwards.
  leading = vectors[:, ::-1][:, :rank]
  down = leading.T if inputs.inverse is None else leading.T @ inputs.inverse
  # Rounding makes eigenvalues that should be zero slightly negative.
  spectrum = np.sqrt(np.maximum(values[::-1], 0))[: min(matrix.shape)]
  return Factors(weighted @ leading, down, spectrum)


def follow(
  rows: Matrix, down: Float[np.ndarray, "r in"], inputs: Metric
) -> tuple[Float[np.ndarray, "r in"], Float[np.ndarray, "r r"]]:
  """Stretches a white latent so that its length is about that of W x.

  docs/method.md, Eq. (14.5).

  Args:
    rows: W.
    down: D of a white latent.
    inputs: Metric in which the latent is white.

  Returns:
    R D, and R^-1 to multiply U by from the right. R has mean square 1.
  """
  shape = rows @ inputs.spread(down)  # W x is about this times the latent
  gram = shape.T @ shape
  root, inverse = _roots(gram * len(gram) / np.trace(gram))
  return root @ down, inverse


def energy_kept(spectrum: Float[np.ndarray, "n"], rank: int) -> float:
  """Returns the share of the squared singular values that a rank keeps.

  Args:
    spectrum: Singular values, descending.
    rank: How many are kept.
  """
  square = np.square(spectrum)
  total = square.sum()
  # What is nothing is kept by any rank.
  return float(square[:rank].sum() / total) if total else 1.0


def effective_rank(
  spectrum: Float[np.ndarray, "n"], *, energy: float = 0.99
) -> int:
  """Returns how many singular values hold a share of the energy.

  Args:
    spectrum: Singular values, descending.
    energy: The share of their squares, 0..1.
  """
  square = np.cumsum(np.square(spectrum))
  return int(np.searchsorted(square, energy * square[-1]) + 1)
