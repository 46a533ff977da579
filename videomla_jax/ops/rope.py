"""3D rotary position embedding with Wan's bands.

A head of D channels is D/2 complex pairs of ADJACENT channels. The first pairs
rotate with the frame index, the next with the row, the last with the column:

  θ_t[i] = 10000^(-2i / D_t),  θ_h[i] = θ_w[i] = 10000^(-2i / D_h)
  D_h = D_w = 2 ⌊D/6⌋,  D_t = D - 2 D_h

Wan2.1 has D = 128, which gives 44 + 42 + 42. Latent attention rotates only d_r
channels: the highest frequencies of each axis of Wan's bands, split by the same
rule, so that d_r = 32 takes (6, 5, 5) pairs (VideoMLA, arXiv:2605.30351).

Angles are computed and not tabulated, so a video may have any length.
"""

from collections.abc import Callable
from typing import NamedTuple

from einops import rearrange
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int
import numpy as np

from videomla_jax import shapes

THETA = 10000.0


class Bands(NamedTuple):
  """Angular frequency of each complex pair, in radians per step of its axis."""

  frame: Float[np.ndarray, "pt"]
  row: Float[np.ndarray, "ph"]
  column: Float[np.ndarray, "pw"]


class Rotation(NamedTuple):
  """Cosine and sine of the angle of every pair of every token."""

  cos: Float32[Array, "*B S pairs"]
  sin: Float32[Array, "*B S pairs"]


def axis_pairs(dim: int) -> tuple[int, int, int]:
  """Splits `dim` rotated channels into pairs of frame, row and column."""
  space = dim // 6
  return dim // 2 - 2 * space, space, space


def wan_bands(head_dim: int, *, rope_dim: int | None = None) -> Bands:
  """Returns Wan's bands of a head, or their highest frequencies.

  Args:
    head_dim: D, which sets the denominators of the exponents.
    rope_dim: d_r, channels that are rotated; all D by default.

  Raises:
    ValueError: If a width is odd or `rope_dim` asks for more than the head has.
  """
  rope_dim = head_dim if rope_dim is None else rope_dim
  if head_dim % 2 or rope_dim % 2 or not 0 < rope_dim <= head_dim:
    raise ValueError(
      f"rope_dim={rope_dim} of head_dim={head_dim} must be even and between "
      "2 and head_dim; choose another split."
    )
  available, taken = axis_pairs(head_dim), axis_pairs(rope_dim)
  if any(t > a for t, a in zip(taken, available, strict=True)):
    raise ValueError(
      f"rope_dim={rope_dim} needs {taken} pairs but head_dim={head_dim} has "
      f"{available}; use a smaller rope_dim."
    )
  # The denominator is that of the whole axis, so fewer pairs are the highest
  # frequencies.
  frequencies = (
    THETA ** (-np.arange(t) / a) if a else np.zeros(0)
    for t, a in zip(taken, available, strict=True)
  )
  return Bands(*frequencies)


def rotation(
  frame: Int[Array, "*B T"], *, grid: shapes.Grid, bands: Bands
) -> Rotation:
  """Computes the rotation of every pair of every token.

  Args:
    frame: Temporal coordinate of each latent frame.
    grid: Token rows and columns of a frame, which are counted from 0.
    bands: Angular frequencies of the pairs.

  Returns:
    Rotations with frame pairs first, then row pairs, then column pairs.
  """
  # Only frame numbers may be traced. Angles of rows and columns are constants
  # of the program, multiplied in float64.
  rows = np.arange(grid.rows)[:, None, None] * bands.row
  columns = np.arange(grid.columns)[None, :, None] * bands.column
  full = (grid.rows, grid.columns)
  space = np.concatenate(
    [np.broadcast_to(a, (*full, a.shape[-1])) for a in (rows, columns)], -1
  ).reshape(grid.tokens, -1)
  # Coordinates become float32, since bfloat16 cannot count beyond 256.
  time = frame[..., None].astype(jnp.float32) * bands.frame.astype(np.float32)
  tokens = (*frame.shape, grid.tokens)

  def per_token(
    function: Callable[[ArrayLike], Array],
  ) -> Float32[Array, "*B S pairs"]:
    pairs = [
      jnp.broadcast_to(function(time)[..., None, :], (*tokens, time.shape[-1])),
      jnp.broadcast_to(
        jnp.asarray(function(space), jnp.float32),
        (*tokens, space.shape[-1]),
      ),
    ]
    both = jnp.concatenate(pairs, axis=-1)
    return both.reshape(*frame.shape[:-1], -1, both.shape[-1])

  return Rotation(per_token(jnp.cos), per_token(jnp.sin))


def rotate(
  x: Float[Array, "B S N D"], rotation: Rotation
) -> Float[Array, "B S N D"]:
  """Rotates adjacent channel pairs: (p, q) -> (p cos - q sin, p sin + q cos).

  Args:
    x: Queries or keys; D is twice the number of pairs.
    rotation: Rotation of each token, which all heads share.

  Returns:
    The rotated tensor in the dtype of `x`; the product runs in float32.
  """
  pairs = rearrange(
    x.astype(jnp.float32), "B S N (i two) -> B S N i two", two=2
  )
  cos, sin = (part[:, :, None] for part in rotation)
  p, q = pairs[..., 0], pairs[..., 1]
  rotated = jnp.stack([p * cos - q * sin, p * sin + q * cos], axis=-1)
  return rotated.reshape(x.shape).astype(x.dtype)
