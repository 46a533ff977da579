"""Frames of bytes: rounding, enlarging and checking arrays of pixels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped, UInt8
import numpy as np

Frames = UInt8[np.ndarray, "t h w c"]


def to_uint8(
  frames: Float[Array | np.ndarray, "*dims"],
) -> UInt8[Array, "*dims"]:
  """Rounds values in [0, 1] to 0..255 and clips what lies outside."""
  # This is computed in float32: products in bfloat16, of 8 significant bits,
  # would be rounded to its own grid first.
  clipped = jnp.clip(jnp.asarray(frames, jnp.float32), 0, 1)
  return jnp.rint(clipped * 255).astype(jnp.uint8)


def start_copy(frames: Shaped[Array, "*dims"]) -> Shaped[Array, "*dims"]:
  """Starts the copy of frames to the host, and returns them at once."""
  frames.copy_to_host_async()
  return frames


def fetch(frames: Shaped[Array, "*dims"]) -> Shaped[np.ndarray, "*dims"]:
  """Waits for the copy of frames on the host, and returns it; read-only."""
  return np.asarray(jax.device_get(frames))


def enlarge(
  frame: UInt8[np.ndarray, "h w c"], scale: int
) -> UInt8[np.ndarray, "height width 3"]:
  """Repeats pixels, makes both sides even, and turns grey into RGB.

  Args:
    frame: A grey or RGB frame.
    scale: Number of times that every pixel is repeated along each side.

  Raises:
    ValueError: If the frame is neither grey nor RGB.
  """
  check_frames(frame[None])
  large = frame.repeat(scale, axis=0).repeat(scale, axis=1)
  height, width, channels = large.shape
  # 4:2:0 video stores colour for 2x2 blocks, so both sides must be even.
  pad = ((0, even(height) - height), (0, even(width) - width), (0, 0))
  large = np.pad(large, pad, mode="edge")
  return np.repeat(large, 3 // channels, axis=-1)


def check_frames(frames: Frames) -> None:
  """Raises `ValueError` unless frames are grey or RGB and not empty."""
  if frames.shape[-1] not in (1, 3) or 0 in frames.shape[1:]:
    raise ValueError(
      f"frames of shape {frames.shape} must be [t, h, w, 1] or [t, h, w, 3];"
      " move the channels to the end."
    )


def even(size: int) -> int:
  """Rounds a size up to an even number."""
  return size + size % 2
