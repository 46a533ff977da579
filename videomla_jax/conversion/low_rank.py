"""Best low-rank factors of a matrix, for inputs of a given covariance.

For W [out, in] and inputs with second moment M the product U D of rank r that
minimises E |W x - U D x|^2 is W S V V^T S^-1, where S = M^(1/2) and V holds the
r leading eigenvectors of S W^T W S (Eckart-Young in the metric of M). The
latent D x = V^T S^-1 x has unit covariance, whatever the spectrum of W, so its
length hardly varies from token to token: that is what an RMSNorm behind it
needs. M = I is the plain truncated SVD. All in float64.
"""

from typing import NamedTuple

from jaxtyping import Float
import numpy as np

Matrix = Float[np.ndarray, "out in"]
# Share of the mean variance that is added to every direction: directions that
# the samples hardly show must not be trusted.
_SHRINKAGE = 1e-3


class Factors(NamedTuple):
  """A product of rank r.

  Attributes:
    up: U, carries the singular values.
    down: D, whitens its inputs.
    spectrum: All singular values of W S, descending.
  """

  up: Float[np.ndarray, "out r"]
  down: Float[np.ndarray, "r in"]
  spectrum: Float[np.ndarray, "n"]


class Metric(NamedTuple):
  """Square root of a second moment M and its inverse; None stands for I."""

  root: Float[np.ndarray, "in in"] | None
  inverse: Float[np.ndarray, "in in"] | None

  def seen(self, down: Float[np.ndarray, "r in"]) -> Float[np.ndarray, "in r"]:
    """M D^T: W times it is the best U for a white latent D x."""
    return down.T if self.root is None else self.root @ self.root @ down.T

  def share(self, rows: Matrix, up: Float[np.ndarray, "out r"]) -> float:
    """Energy of U D x, D x being white, against that of W x."""
    whole = rows if self.root is None else rows @ self.root
    total = np.square(whole).sum()
    return float(np.square(up).sum() / total) if total else 1.0


PLAIN = Metric(None, None)


def metric(moment: Float[np.ndarray, "in in"]) -> Metric:
  """Metric of a covariance, a little of the identity added."""
  return Metric(*_roots(moment))


def _roots(moment: Float[np.ndarray, "n n"]) -> tuple[np.ndarray, np.ndarray]:
  moment = np.asarray(moment, np.float64)
  floor = _SHRINKAGE * np.trace(moment) / len(moment)
  values, vectors = np.linalg.eigh((moment + moment.T) / 2)
  roots = np.sqrt(np.maximum(values, 0) + floor)
  return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def factorise(matrix: Matrix, rank: int, *, inputs: Metric = PLAIN) -> Factors:
  """Leading factors of a matrix.

  Args:
    matrix: W, any row weights applied.
    rank: r, at most the number of columns.
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
  values, vectors = np.linalg.eigh(weighted.T @ weighted)
  leading = vectors[:, ::-1][:, :rank]
  down = leading.T if inputs.inverse is None else leading.T @ inputs.inverse
  spectrum = np.sqrt(np.maximum(values[::-1], 0))[: min(matrix.shape)]
  return Factors(weighted @ leading, down, spectrum)


def follow(
  rows: Matrix, down: Float[np.ndarray, "r in"], inputs: Metric
) -> tuple[Float[np.ndarray, "r in"], Float[np.ndarray, "r r"]]:
  """Stretches a white latent so that its length is about that of W x.

  Args:
    rows: W.
    down: D of a white latent.
    inputs: Metric in which it is white.

  Returns:
    R D, and R^-1 to put behind U. R is of mean square 1.
  """
  shape = rows @ inputs.seen(down)  # W x is about this times the latent
  gram = shape.T @ shape
  root, inverse = _roots(gram * len(gram) / np.trace(gram))
  return root @ down, inverse


def energy_kept(spectrum: Float[np.ndarray, "n"], rank: int) -> float:
  """Share of the squared singular values among the first `rank`."""
  square = np.square(spectrum)
  return float(square[:rank].sum() / square.sum())


def effective_rank(
  spectrum: Float[np.ndarray, "n"], *, energy: float = 0.99
) -> int:
  """Fewest singular values that hold a share of the energy."""
  square = np.cumsum(np.square(spectrum))
  return int(np.searchsorted(square, energy * square[-1]) + 1)
