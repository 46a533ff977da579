"""Decoders and the VAE on overlapping tiles, for frames larger than memory.

docs/method.md, section 4.6. Every tile has a state of its own and tiles are
computed one after the other, so the activations in memory are those of one
tile. Where tiles overlap they are blended linearly. The attention in the middle
of the VAE sees one tile only and borders see zeros, so the result is close to
that of the whole frame, but not equal.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped, UInt8
import numpy as np

from videomla_jax.models import vae as vae_lib

Video = Float[Array, "B T H W C"]
Weights = Float[np.ndarray, "h w"]


def starts(length: int, *, tile: int, overlap: int) -> list[int]:
  """Returns the first positions of equal tiles that cover an axis evenly.

  Args:
    length: Positions of the axis.
    tile: Positions of a tile; a shorter axis has one tile.
    overlap: Fewest positions that neighbours share.
  """
  if tile >= length:
    return [0]
  # Where tiles do not divide evenly they share more than `overlap`, so that all
  # have one size and one program serves them.
  count = -(-(length - overlap) // (tile - overlap))
  return np.linspace(0, length - tile, count).round().astype(int).tolist()


def ramp(length: int, *, overlap: int) -> Float[np.ndarray, "n"]:
  """Returns weights along a tile that rise from both ends to 1.

  docs/method.md, Eq. (4.5).

  Args:
    length: Positions of the tile.
    overlap: Positions over which the weight rises.
  """
  # Half a position keeps the ends above 0: at the border of the frame there is
  # one tile only, and its weight is divided by itself.
  position = np.arange(length) + 0.5
  return np.minimum(np.minimum(position, length - position) / overlap, 1)


class TiledDecoder(nnx.Module):
  """A decoder that computes one tile at a time, with the same interface."""

  def __init__(
    self, whole: vae_lib.Decoder, *, tile: int, overlap: int = 4
  ) -> None:
    """Wraps a decoder that is loaded already.

    Args:
      whole: The decoder of whole frames.
      tile: Side of a tile in latent pixels.
      overlap: Latent pixels that neighbours share at least.

    Raises:
      ValueError: If tiles would not advance.
    """
    if not 0 < overlap < tile:
      raise ValueError(
        f"vae_tile={tile} must be larger than its overlap {overlap}, which "
        f"must be positive; use {4 * max(overlap, 1)} or more."
      )
    self.whole, self.tile, self.overlap = whole, tile, overlap

  channels = property(lambda self: self.whole.channels)
  pixel_channels = property(lambda self: self.whole.pixel_channels)
  temporal_stride = property(lambda self: self.whole.temporal_stride)
  spatial_stride = property(lambda self: self.whole.spatial_stride)

  def _corners(self, height: int, width: int) -> Int[np.ndarray, "n 2"]:
    """Returns row and column of the first latent pixel of every tile."""
    rows, columns = (
      starts(n, tile=self.tile, overlap=self.overlap) for n in (height, width)
    )
    return np.asarray([(r, c) for r in rows for c in columns])

  def sides(self, height: int, width: int) -> tuple[int, int]:
    """Returns latent rows and columns of a tile of such a frame."""
    return min(self.tile, height), min(self.tile, width)

  def start(self, batch: int, height: int, width: int) -> vae_lib.State:
    """Returns the state of every tile before the first latent frame."""
    # Tiles are equal in size, so one state serves as the pattern of all.
    count = len(self._corners(height, width))
    one = self.whole.start(batch, *self.sides(height, width))
    return jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), one)

  def decode_chunk(
    self, latents: Video, state: vae_lib.State
  ) -> tuple[Float[Array, "B t h w 3"], vae_lib.State]:
    """Returns what `decode_chunk` of the whole does, tile by tile."""
    height, width = latents.shape[2:4]
    sides = self.sides(height, width)

    def decode_tile(
      tile: tuple[Int[Array, "2"], vae_lib.State],
    ) -> tuple[Float[Array, "B t h w 3"], vae_lib.State]:
      corner, memory = tile
      crop = _crop(latents, corner, sides)
      return self.whole.decode_chunk(crop, memory)

    corners = self._corners(height, width)
    # This is a loop and no batch: one tile's activations are what must fit.
    pieces, state = jax.lax.map(decode_tile, (jnp.asarray(corners), state))
    return self._blend(pieces, corners, (height, width), enlarge=True), state

  def decode(self, latents: Video) -> Float[Array, "B t h w 3"]:
    """Returns the pixels of a whole clip in [0, 1]."""
    state = self.start(latents.shape[0], *latents.shape[2:4])
    return self.decode_chunk(latents, state)[0]

  def _blend(
    self,
    pieces: Float[Array, "n B t h w c"],
    corners: Int[np.ndarray, "n 2"],
    size: tuple[int, int],
    *,
    enlarge: bool,
  ) -> Float[Array, "B t hh ww c"]:
    """Returns the weighted mean of overlapping tiles.

    Args:
      pieces: Tiles of pixels or of latents.
      corners: Row and column of each tile's first latent pixel.
      size: Latent rows and columns of the whole frame.
      enlarge: Whether the tiles are pixels.
    """
    scale = self.spatial_stride if enlarge else 1
    # A single tile is the whole frame and stays exact.
    if len(corners) == 1:
      return pieces[0]
    shape = pieces.shape[3:5]
    weights = [ramp(n, overlap=self.overlap * scale) for n in shape]
    weight = np.outer(*weights).astype(np.float32)[..., None]
    full = (*pieces.shape[1:3], size[0] * scale, size[1] * scale)
    total = jnp.zeros((*full, pieces.shape[-1]), pieces.dtype)
    # Weights follow from shapes alone, so NumPy makes them constants.
    norm = np.zeros((*full[2:], 1), np.float32)
    for piece, (row, column) in zip(pieces, corners * scale, strict=True):
      inside = np.s_[row : row + shape[0], column : column + shape[1]]
      total = total.at[:, :, *inside].add(piece * weight)
      norm[inside] += weight
    return total / norm


class TiledVAE(TiledDecoder):
  """A `WanVAE` that computes one tile at a time, with the same interface."""

  def __init__(
    self, whole: vae_lib.WanVAE, *, tile: int, overlap: int = 4
  ) -> None:
    """Wraps a VAE that is loaded already; arguments as in `TiledDecoder`."""
    super().__init__(whole, tile=tile, overlap=overlap)

  def encode(self, video: UInt8[Array, "B t h w 3"]) -> Video:
    """Returns what `WanVAE.encode` does, tile by tile."""
    stride = self.spatial_stride
    height, width = (n // stride for n in video.shape[2:4])
    # This raises for sizes that are no multiple of the stride.
    self.whole.start_encode(1, *video.shape[2:4])
    sides = tuple(n * stride for n in self.sides(height, width))
    corners = self._corners(height, width)
    pieces = jax.lax.map(
      lambda corner: self.whole.encode(_crop(video, corner * stride, sides)),
      jnp.asarray(corners),
    )
    return self._blend(pieces, corners, (height, width), enlarge=False)


def _crop(
  x: Shaped[Array, "B T H W C"], corner: Int[Array, "2"], sides: tuple[int, ...]
) -> Shaped[Array, "B T h w C"]:
  """Cuts rows and columns out of `[B, T, H, W, C]` from a traced corner."""
  x = jax.lax.dynamic_slice_in_dim(x, corner[0], sides[0], axis=2)
  return jax.lax.dynamic_slice_in_dim(x, corner[1], sides[1], axis=3)
