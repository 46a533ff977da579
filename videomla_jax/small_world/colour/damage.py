"""Damages clips as an autoencoder does: blur, and noise with grains.

Half of the squared error that a PSNR allows becomes blur, where edges have as
much to lose, and the rest becomes noise that is smooth over about two pixels
and new in every frame. It stands in for a VAE of that PSNR; errors of a real
one are larger at what moves.
"""

from jaxtyping import Float, Float32, Num
import numpy as np

_BLUR, _GRAIN = 1.0, 0.7  # standard deviations, pixels
_PEAK = 255.0


def damage(
  rng: np.random.Generator,
  videos: Num[np.ndarray, "V T h w 3"],
  *,
  psnr: float | int,
) -> Float32[np.ndarray, "V T h w 3"]:
  """Returns damaged videos, 0..1, each of about a given PSNR.

  Args:
    rng: Source of the noise.
    videos: Pixels, 0..255.
    psnr: Peak signal to noise ratio of each video before clipping, dB.
  """
  damaged = [_damage(rng, video.astype(np.float32), psnr) for video in videos]
  return np.stack(damaged) / np.float32(_PEAK)


def _damage(
  rng: np.random.Generator,
  video: Float32[np.ndarray, "T h w 3"],
  psnr: float | int,
) -> Float32[np.ndarray, "T h w 3"]:
  budget = _PEAK**2 / 10 ** (psnr / 10)
  lost = blur(video, _BLUR) - video
  square = float(np.square(lost).mean())
  share = min(1.0, (budget / 2 / max(square, 1e-9)) ** 0.5)
  noise = blur(rng.standard_normal(video.shape, dtype=np.float32), _GRAIN)
  rest = max(budget - share**2 * square, 0.0)
  noise *= np.float32((rest / np.square(noise).mean()) ** 0.5)
  return np.clip(video + np.float32(share) * lost + noise, 0, _PEAK)


def blur(
  images: Float[np.ndarray, "*B h w c"], deviation: float
) -> Float[np.ndarray, "*B h w c"]:
  """Blurs height and width by a Gaussian; edges repeat.

  Args:
    images: What is blurred.
    deviation: Standard deviation of the Gaussian, pixels.
  """
  reach = int(np.ceil(2.5 * deviation))
  place = np.arange(-reach, reach + 1)
  weights = np.exp(-0.5 * (place / deviation) ** 2)
  weights = (weights / weights.sum()).astype(images.dtype)
  for axis in (-3, -2):
    pad = [(0, 0)] * images.ndim
    pad[axis] = (reach, reach)
    padded = np.moveaxis(np.pad(images, pad, mode="edge"), axis, 0)
    length = len(padded) - 2 * reach
    blurred = sum(w * padded[i : i + length] for i, w in enumerate(weights))
    images = np.moveaxis(blurred, 0, axis)
  return images
