"""The letters of dimensions, and arithmetic of tokens and frames.

Every docstring, einsum and annotation of the package uses these letters:

  B batch                    E model width
  T latent frames            N attention heads
  H, W latent rows, columns  D head dim
  C latent channels          F feed-forward width
  P tokens per latent frame  d_c (c) cached content latent
  L query tokens             d_r (r) cached positional key, not rotated
  S key tokens               M text tokens
  G chunks side by side      K key frames (context and own chunk)

Latent frames are what the model denoises; a chunk is the frames it denoises
together. Layout is `B T H W C` for latents and `B L N D` for heads.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """Token rows and columns of one latent frame.

  Attributes:
    rows: Token rows, latent height / patch.
    columns: Token columns, latent width / patch.
  """

  rows: int
  columns: int

  @property
  def tokens(self) -> int:
    """P, the tokens of one latent frame."""
    return self.rows * self.columns


def token_grid(height: int, width: int, *, patch: int) -> Grid:
  """Returns the token grid of a latent frame.

  Args:
    height: Latent rows H.
    width: Latent columns W.
    patch: Side of a square patch in latent pixels.

  Raises:
    ValueError: If the frame is empty or not a multiple of the patch.
  """
  for name, size in (("height", height), ("width", width)):
    if size < patch or size % patch:
      raise ValueError(
        f"latent {name}={size} must be a positive multiple of the patch "
        f"{patch}; crop or resize the video."
      )
  return Grid(rows=height // patch, columns=width // patch)


def round_up(count: int, multiple: int) -> int:
  """Returns the smallest multiple of `multiple` that is at least `count`."""
  return -(-count // multiple) * multiple


def pixel_frames(latent_frames: int, *, stride: int) -> int:
  """Counts pixel frames: one for the first latent frame, `stride` for others.

  Args:
    latent_frames: Latent frames of the clip, at least 1.
    stride: Pixel frames per latent frame, 4 in Wan's VAE.
  """
  return stride * (latent_frames - 1) + 1


def covering_latents(pixel_frames: int, *, stride: int) -> int:
  """Counts the fewest latent frames that give at least so many pixel frames.

  Args:
    pixel_frames: Pixel frames that are wanted, at least 1.
    stride: Pixel frames per latent frame, 4 in Wan's VAE.
  """
  # Floor division of the negated count rounds up, without any float.
  return -((1 - pixel_frames) // stride) + 1
