"""Reads which digit a crop of cover shows: frames to learn from, and a network.

A crop is what `observe` makes of a digit in any colour, so the network knows
shapes only. It learns from training handwriting, bent a little, at parts of a
pixel, blurred and noisy as after an autoencoder.
"""

from typing import NamedTuple

from flax import nnx
import jax
from jaxtyping import Array, Float, Int, Num, UInt8
import numpy as np

from videomla_jax.small_world import judge_frames
from videomla_jax.small_world import world
from videomla_jax.small_world.colour import damage
from videomla_jax.small_world.colour import digits
from videomla_jax.small_world.colour import observe

_BATCH = 1024
_AT_ONCE = 2000  # crops that are drawn together, to bound memory
_MOST_BLUR, _MOST_NOISE = 1.3, 0.10  # pixels; share of cover
_MOST_MISPLACED = 1.0  # pixels


class Crops(NamedTuple):
  """Crops with known truth.

  Attributes:
    images: Cover, 0..255.
    identity: The digit, 0..9.
  """

  images: UInt8[np.ndarray, "n height width"]
  identity: Int[np.ndarray, "n"]


class Reader(nnx.Module):
  """Tells the digit from a crop of cover."""

  def __init__(self, *, dropout: float, rngs: nnx.Rngs) -> None:
    self.conv1 = nnx.Conv(1, 24, (5, 5), strides=2, rngs=rngs)
    self.conv2 = nnx.Conv(24, 48, (3, 3), rngs=rngs)
    self.conv3 = nnx.Conv(48, 64, (3, 3), strides=2, rngs=rngs)
    height, width = (length // 4 for length in observe.CROP)
    self.hidden = nnx.Linear(height * width * 64, 128, rngs=rngs)
    self.identity = nnx.Linear(128, 10, rngs=rngs)
    self.drop = nnx.Dropout(dropout)

  def __call__(
    self,
    crops: Num[Array, "n height width"],
    *,
    rngs: nnx.Rngs | None = None,
  ) -> Float[Array, "n 10"]:
    """Returns logits of the digits.

    Args:
      crops: Cover, 0..255.
      rngs: Source of dropout in training; None switches dropout off.
    """
    still = rngs is None
    x = crops[..., None].astype("float32") / 255
    x = jax.nn.gelu(self.conv1(x))
    x = jax.nn.gelu(self.conv3(jax.nn.gelu(self.conv2(x))))
    x = self.drop(x.reshape(len(x), -1), deterministic=still, rngs=rngs)
    x = jax.nn.gelu(self.hidden(x))
    return self.identity(self.drop(x, deterministic=still, rngs=rngs))


def read(
  reader: Reader, crops: UInt8[np.ndarray, "n height width"]
) -> Float[np.ndarray, "n 10"]:
  """Returns logarithms of the probabilities of the ten digits.

  Args:
    reader: A trained reader.
    crops: Cover, 0..255.
  """
  parts = [np.zeros((0, 10), np.float32)]
  for i in range(0, len(crops), _BATCH):
    block = crops[i : i + _BATCH]
    # Another shape would compile anew.
    whole = np.pad(block, [(0, _BATCH - len(block)), (0, 0), (0, 0)])
    parts.append(jax.device_get(_read(reader, whole))[: len(block)])
  return np.concatenate(parts)


def synthesise(
  rng: np.random.Generator,
  split: str,
  *,
  num_crops: int,
  num_warps: int = 0,
  clean: bool = False,
) -> Crops:
  """Draws crops of handwriting with typical damage.

  Args:
    rng: Source of all randomness.
    split: Whose handwriting, "train" or "test".
    num_crops: Crops to draw.
    num_warps: Bent copies of each digit that are drawn from, too.
    clean: Whether there is no damage, only places at parts of a pixel.
  """
  sprites, labels = world.load_sprites(split)
  copies = [sprites]
  copies += [judge_frames.warp(rng, sprites) for _ in range(num_warps)]
  every = np.concatenate(copies)
  index = rng.integers(len(every), size=num_crops)
  parts = [
    _draw(rng, every[index[i : i + _AT_ONCE]], clean=clean)
    for i in range(0, num_crops, _AT_ONCE)
  ]
  return Crops(np.concatenate(parts), np.tile(labels, len(copies))[index])


def _draw(
  rng: np.random.Generator,
  sprites: Float[np.ndarray, "n 8 8"],
  *,
  clean: bool,
) -> UInt8[np.ndarray, "n height width"]:
  """Enlarges, places and damages handwriting."""
  ink = digits.enlarge(sprites)
  ink[ink * 255 < digits.FAINTEST] = 0
  num = len(ink)
  moved = rng.uniform(-0.5, 0.5, (2, num))
  if not clean:
    moved += rng.uniform(-_MOST_MISPLACED, _MOST_MISPLACED, (2, num))
  weights = [
    _weights(ink.sum(2 - axis), moved[axis], observe.CROP[axis])
    for axis in (0, 1)
  ]
  drawn = np.einsum("nyr,nrc,nxc->nyx", weights[0], ink, weights[1]) / 4
  if not clean:
    drawn = _damage(rng, drawn.astype(np.float32))
  drawn[drawn < observe.EDGE_COVER] = 0
  return np.rint(np.clip(drawn, 0, 1) * 255).astype(np.uint8)


def _weights(
  along: Float[np.ndarray, "n samples"],
  moved: Float[np.ndarray, "n"],
  pixels: int,
) -> Float[np.ndarray, "n pixels samples"]:
  """Returns the shares of Eq. (1) of `drawing`, around the centroid."""
  sample = np.arange(along.shape[1]) / 2
  middle = along @ sample / along.sum(1)
  place = sample - middle[:, None] + moved[:, None] + pixels / 2
  pixel = np.arange(pixels)[:, None] + 0.5
  return np.maximum(1 - np.abs(pixel - place[:, None]), 0)


def _damage(
  rng: np.random.Generator, drawn: Float[np.ndarray, "n height width"]
) -> Float[np.ndarray, "n height width"]:
  """Blurs, adds noise, and makes some digits fainter or bolder."""
  num = len(drawn)
  blurred = damage.blur(drawn[..., None], _MOST_BLUR)[..., 0]
  share = rng.uniform(0, 1, (num, 1, 1)).astype(np.float32)
  drawn = drawn + share * (blurred - drawn)
  noise = rng.standard_normal(drawn.shape, dtype=np.float32)
  noise = damage.blur(noise[..., None], 0.7)[..., 0]
  noise *= rng.uniform(0, _MOST_NOISE, (num, 1, 1)).astype(np.float32) * 2
  contrast = rng.uniform(0.7, 1.15, (num, 1, 1)).astype(np.float32)
  # There is no noise where another colour is nearer.
  return contrast * drawn + noise * (drawn > 0.05)


@jax.jit
def _read(
  reader: Reader, crops: Num[Array, "n height width"]
) -> Float[Array, "n 10"]:
  return jax.nn.log_softmax(reader(crops))
