"""What a VAE is worth on held-out clips, and the statistics of its latents."""

from collections.abc import Iterable
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, UInt8
import numpy as np

from videomla_jax.models import vae as vae_lib
from videomla_jax.models import vae_coders

Clips = UInt8[Array, "B t h w 3"]
_LEAST_STD = 1e-3  # of a latent channel that holds nothing
_LEAST_ERROR = 1e-10  # squared, so that PSNR ends at 100 dB


@dataclasses.dataclass(frozen=True)
class Quality:
  """Measures of held-out clips.

  Attributes:
    psnr: Peak signal-to-noise ratio in dB, a mean over clips.
    seam: Change of the error between frames of two latent frames, over that
      inside of one; 1 if cuts cannot be seen.
    chunked: Largest difference between pixels, in [0, 1], that were decoded
      chunk by chunk, and those of the whole clip.
  """

  psnr: float
  seam: float
  chunked: float


def psnr(
  found: Float[Array, "B t h w 3"], video: Float[Array, "B t h w 3"]
) -> Float32[Array, "B"]:
  """Returns the peak signal-to-noise ratio of each clip in dB.

  Args:
    found: Pixels in [0, 1].
    video: The pixels that they should be.
  """
  error = jnp.square(found - video).mean((1, 2, 3, 4))
  return -10 * jnp.log10(jnp.maximum(error, _LEAST_ERROR))


def seam(
  found: Float[Array, "B t h w 3"],
  video: Float[Array, "B t h w 3"],
  *,
  stride: int,
) -> Float32[Array, ""]:
  """Returns how far cuts between latent frames can be seen, 1 for not at all.

  Args:
    found: Pixels.
    video: The pixels that they should be; more frames than `stride` + 1.
    stride: Pixel frames of a latent frame; the first one has a single one.
  """
  change = jnp.abs(jnp.diff(found - video, axis=1)).mean((0, 2, 3, 4))
  # Difference i is between the frames i and i + 1, and latent frames begin with
  # the frames 1, 1 + stride, 1 + 2 stride.
  between = np.arange(len(change)) % stride == 0
  tiny = jnp.finfo(jnp.float32).tiny
  if stride == 1:
    return jnp.float32(1)
  return change[between].mean() / jnp.maximum(change[~between].mean(), tiny)


@jax.jit
def _measure(
  vae: vae_lib.WanVAE, video: Clips
) -> tuple[Float32[Array, "B"], Float32[Array, ""], Float32[Array, ""]]:
  pixels = video.astype(jnp.float32) / 255
  latents = vae.encode(video)
  found = vae.decode(latents)
  # Three latent frames, as generation makes them, and then the others.
  state = vae.start(video.shape[0], *latents.shape[2:4])
  parts = []
  for start in range(0, latents.shape[1], 3):
    part, state = vae.decode_chunk(latents[:, start : start + 3], state)
    parts.append(part)
  difference = jnp.abs(jnp.concatenate(parts, 1) - found).max()
  seams = seam(found, pixels, stride=vae.temporal_stride)
  return psnr(found, pixels), seams, difference


def measure(vae: vae_lib.WanVAE, batches: Iterable[Clips]) -> Quality:
  """Measures a VAE; latents are means, nothing is drawn.

  Args:
    vae: The network.
    batches: Held-out clips.
  """
  found = [jax.device_get(_measure(vae, video)) for video in batches]
  ratios, seams, chunked = zip(*found, strict=True)
  return Quality(
    psnr=float(np.mean(np.concatenate(ratios))),
    seam=float(np.mean(seams)),
    chunked=float(np.max(chunked)),
  )


@jax.jit
def _sums(
  vae: vae_lib.WanVAE, video: Clips
) -> tuple[Float32[Array, "C"], Float32[Array, "C"]]:
  latents = vae.encode(video)
  axes = (0, 1, 2, 3)
  return latents.mean(axes), jnp.square(latents).mean(axes)


def with_statistics(
  vae: vae_lib.WanVAE, batches: Iterable[Clips]
) -> vae_lib.WanVAE:
  """Returns a VAE whose latents have mean 0 and deviation 1 on these clips.

  Args:
    vae: The network; it stays as it is.
    batches: Clips of equal numbers.
  """
  found = [jax.device_get(_sums(vae, video)) for video in batches]
  mean, square = (np.mean(x, axis=0, dtype=np.float64) for x in zip(*found))
  std = np.sqrt(np.maximum(square - mean**2, 0))
  old = vae.config
  # What was measured are latents normalised by the statistics so far.
  means = np.asarray(old.mean) + np.asarray(old.std) * mean
  stds = np.maximum(np.asarray(old.std) * std, _LEAST_STD)
  config = dataclasses.replace(
    old, mean=tuple(map(float, means)), std=tuple(map(float, stds))
  )
  return with_config(vae, config)


def with_config(
  vae: vae_lib.WanVAE, config: vae_coders.VaeConfig
) -> vae_lib.WanVAE:
  """Returns a VAE of the same arrays under another config.

  Args:
    vae: The network; it stays as it is.
    config: The config, of the same layers.
  """
  leaves, structure = jax.tree.flatten(vae)
  changed = jax.tree.unflatten(structure, leaves)
  changed.config = config
  return changed
