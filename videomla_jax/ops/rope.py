"""3D rotary position embedding with Wan's bands.

A head of D channels is D/2 complex pairs of ADJACENT channels. The first pairs
rotate with the frame index, the next with the row, the last with the column:

  θ_t[i] = 10000^(-2i / D_t),  θ_h[i] = θ_w[i] = 10000^(-2i / D_h)
  D_h = D_w = 2 ⌊D/6⌋,  D_t = D - 2 D_h

Wan2.1 has D = 128, which gives 44 + 42 + 42. Latent attention rotates only d_r
channels: the highest frequencies of each axis of Wan's bands, split by the same
rule, so that d_r = 32 takes (6, 5, 5) pairs (VideoMLA, arXiv:2605.30351).

Angles are computed and not tabulated, so a video may have any length. The
published networks compute them in float64, which accelerators lack or run
slowly: an angle of 1000 radians in float32 is off by up to 3e-5, and so would
its cosine be. Here an angle is the sum of two float32 numbers.
"""

from collections.abc import Sequence
import itertools
from typing import NamedTuple

from einops import rearrange
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int
import numpy as np

from videomla_jax import shapes

THETA = 10000.0
_BITS = 12  # two factors of 12 bits have a product of 24: exact in float32


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
  # Only frame numbers may be traced. Rows and columns are constants of the
  # program, whose angles are computed in float64.
  rows = np.arange(grid.rows)[:, None, None] * bands.row
  columns = np.arange(grid.columns)[None, :, None] * bands.column
  full = (grid.rows, grid.columns)
  space = np.concatenate(
    [np.broadcast_to(a, (*full, a.shape[-1])) for a in (rows, columns)], -1
  ).reshape(grid.tokens, -1)
  # Coordinates become float32, since bfloat16 cannot count beyond 256.
  time = cos_sin(frame.astype(jnp.float32), bands.frame)

  def per_token(
    of_time: Float32[Array, "*B T pt"], of_space: Float[np.ndarray, "N ps"]
  ) -> Float32[Array, "*B S pairs"]:
    tokens = (*frame.shape, grid.tokens)
    parts = (of_time[..., None, :], of_space.astype(np.float32))
    both = jnp.concatenate(
      [jnp.broadcast_to(x, (*tokens, x.shape[-1])) for x in parts], axis=-1
    )
    return both.reshape(*frame.shape[:-1], -1, both.shape[-1])

  return Rotation(
    per_token(time[0], np.cos(space)), per_token(time[1], np.sin(space))
  )


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
  cos, sin = (part[:, :, None, :, None] for part in rotation)
  # One sum for both channels of a pair. With one for each of them, XLA writes
  # all first and all second channels into float32 arrays and reads them again.
  sign = np.asarray([-1, 1], np.float32)
  rotated = pairs * cos + pairs[..., ::-1] * (sin * sign)
  return rotated.reshape(x.shape).astype(x.dtype)


def rotate_frames(
  x: Float[Array, "B T P N D"], rotation: Rotation
) -> Float[Array, "B S N D"]:
  """Rotates the tokens of frames, and joins frames: S = T P.

  Args:
    x: Queries or keys.
    rotation: What `by_frame` returned for them.
  """

  def joined(y: Float[Array, "B T P ..."]) -> Float[Array, "B S ..."]:
    return y.reshape(y.shape[0], -1, *y.shape[3:])

  return rotate(joined(x), jax.tree.map(joined, rotation))


def by_frame(rotation: Rotation, tokens: int) -> Rotation:
  """Separates frames and tokens of rotations: `[B, T, P, pairs]`.

  Args:
    rotation: Rotation of each token, `[B, S, pairs]`.
    tokens: P, tokens of a frame.
  """
  return jax.tree.map(
    lambda a: rearrange(a, "B (T P) i -> B T P i", P=tokens), rotation
  )


def cut(rotation: Rotation, sizes: Sequence[int]) -> list[Rotation]:
  """Returns the rotations of each entry of a context.

  Args:
    rotation: Rotations of all tokens, `[B, S, pairs]`.
    sizes: Tokens of each entry, which add up to S.
  """
  ends = list(itertools.accumulate(sizes))[:-1]
  parts = (jnp.split(a, ends, axis=1) for a in rotation)
  return [Rotation(*pair) for pair in zip(*parts, strict=True)]


def cos_sin(
  position: Float32[Array, "*B"], frequency: Float[np.ndarray, "n"]
) -> tuple[Float32[Array, "*B n"], Float32[Array, "*B n"]]:
  """Computes cos(position · frequency) and sin(position · frequency).

  The result equals that of float64 within 1.5e-7, whatever the position; it may
  be traced, and the frequencies are constants of the program.

  Args:
    position: Whole numbers below 2^24, or other float32 numbers.
    frequency: Radians per step, float64.
  """
  large, small = _product(position[..., None], frequency)
  cos, sin = jnp.cos(large), jnp.sin(large)
  # The small part of a far position is no small angle.
  turn_cos, turn_sin = jnp.cos(small), jnp.sin(small)
  return cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin


def _product(
  x: Float32[Array, "*B one"], frequency: Float[np.ndarray, "n"]
) -> tuple[Float32[Array, "*B n"], Float32[Array, "*B n"]]:
  """Multiplies; the exact product is the sum of the two results."""
  first, second, rest = _pieces(frequency)
  # Rounding to fewer bits leaves the other bits as an exact difference. No
  # product of pieces is rounded, so a compiler that fuses it with a sum changes
  # nothing.
  upper = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=_BITS - 1)
  lower = x - upper
  large, error = _sum(upper * first, upper * second)
  large, error_too = _sum(large, lower * first)
  return _sum(large, lower * second + x * rest + error + error_too)


def _pieces(
  frequency: Float[np.ndarray, "n"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Splits numbers into two of `_BITS` bits each, and the rest as float32."""
  pieces = []
  for _ in range(2):
    mantissa, exponent = np.frexp(frequency)
    piece = np.ldexp(np.round(mantissa * 2**_BITS), exponent - _BITS)
    pieces.append(piece.astype(np.float32))
    frequency = frequency - piece
  return pieces[0], pieces[1], frequency.astype(np.float32)


def _sum(
  a: Float32[Array, "*B"], b: Float32[Array, "*B"]
) -> tuple[Float32[Array, "*B"], Float32[Array, "*B"]]:
  """Returns the rounded sum and its error, whose sum is exact (Knuth)."""
  total = a + b
  of_b = total - a
  return total, (a - (total - of_b)) + (b - of_b)
