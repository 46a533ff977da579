"""Synthetic frames with known truth, to train and to test the judge.

Whole digits, fragments and doubled digits, drawn in the world and damaged as
a generative model would damage them: blur, noise, weak or strong contrast.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int, UInt8
import numpy as np

from videomla_jax.small_world import world

FRAGMENT, WHOLE, DOUBLED = range(3)
CONTENTS = ("none or fragment", "one whole digit", "two or doubled")

# Kinds of synthetic frames: share of the data and content class. Half are
# whole, since identity is learned from those alone. A "quarter"
# has lost a quarter of the box; a "copy" is the same digit twice.
_KINDS = {
  "whole": (0.5, WHOLE),
  "half": (0.08, FRAGMENT),
  "quarter": (0.08, FRAGMENT),
  "faint": (0.06, FRAGMENT),
  "blank": (0.03, FRAGMENT),
  "two": (0.125, DOUBLED),
  "copy": (0.125, DOUBLED),
}
KIND_NAMES = tuple(_KINDS)

_WORLD = world.World()


class SyntheticFrames(NamedTuple):
  """Frames with known truth.

  Attributes:
    images: Grey frames, 0..255.
    identity: The first digit that was drawn, 0..9.
    content: Class 0..2, see `CONTENTS`.
    kind: Number of the kind, see `KIND_NAMES`.
  """

  images: UInt8[np.ndarray, "n 24 24 1"]
  identity: Int[np.ndarray, "n"]
  content: Int[np.ndarray, "n"]
  kind: Int[np.ndarray, "n"]


def synthesise(
  rng: np.random.Generator,
  sprites: Float[np.ndarray, "s 8 8"],
  labels: Int[np.ndarray, "s"],
  *,
  num_frames: int,
) -> SyntheticFrames:
  """Draws whole, broken, faint and doubled digits with typical damage.

  Args:
    rng: Source of all randomness.
    sprites: Digits in [0, 1].
    labels: Their identities.
    num_frames: Frames to draw; kinds have the shares of `_KINDS`.

  Returns:
    Frames and their truth.
  """
  shares, contents = zip(*_KINDS.values())
  kind = rng.choice(len(shares), num_frames, p=shares)
  names = np.array(KIND_NAMES)[kind]
  index, other = rng.integers(len(sprites), size=(2, num_frames))
  other = np.where(names == "copy", index, other)
  # Indexing by an array copies, so the sprites themselves stay whole below.
  first = sprites[index]
  # Only these two lose ink in the sprite; faint and blank lose contrast below.
  for name in ("half", "quarter"):
    chosen = names == name
    first[chosen] = _break(rng, first[chosen], _MASKS[name])
  doubled = np.isin(names, ("two", "copy"))
  strength = rng.uniform(0.6, 1.0, num_frames) * doubled
  corner = _corners(rng, num_frames)
  second = sprites[other] * strength.astype(np.float32)[:, None, None]
  # Ink does not add up: two strokes are as bright as the brighter one.
  frames = np.maximum(
    paste(first, corner), paste(second, _second_corners(rng, corner))
  )
  contrast = rng.uniform(0.7, 1.1, num_frames)
  faint = names == "faint"
  contrast[faint] = rng.uniform(0.05, 0.35, faint.sum())
  contrast[names == "blank"] = 0.0
  images = _damage(rng, frames * contrast.astype(np.float32)[:, None, None])
  return SyntheticFrames(
    images=np.rint(images * 255).astype(np.uint8)[..., None],
    identity=labels[index],
    content=np.array(contents)[kind],
    kind=kind,
  )


def warp(
  rng: np.random.Generator, sprites: Float[np.ndarray, "s 8 8"]
) -> Float[np.ndarray, "s 8 8"]:
  """Rotates, scales, shears and moves each sprite a little.

  The held-out digits are by other writers; without this, identity is 0.95.

  Args:
    rng: Source of all randomness.
    sprites: Digits in [0, 1].

  Returns:
    Bilinear samples of the warped digits, same layout.
  """
  num, size = len(sprites), sprites.shape[-1]
  angle, shear = rng.uniform(-0.25, 0.25, (2, num, 1, 1))
  scale_y, scale_x = 1 + rng.uniform(-0.15, 0.15, (2, num, 1, 1))
  move_y, move_x = rng.uniform(-0.5, 0.5, (2, num, 1, 1))
  middle = (size - 1) / 2
  y, x = np.mgrid[:size, :size] - middle
  source_y = scale_y * np.cos(angle) * y + np.sin(angle) * x + move_y
  source_x = scale_x * np.cos(angle) * x + (shear - np.sin(angle)) * y + move_x
  return _bilinear(sprites, source_y + middle, source_x + middle)


def paste(
  sprites: Float[np.ndarray, "n 8 8"], corners: Int[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 24 24"]:
  """Draws each sprite into its own black frame.

  Args:
    sprites: Digits in [0, 1].
    corners: Top-left corners (row, column), pixels, inside the frame.

  Returns:
    The frames.
  """
  size = np.arange(_WORLD.sprite_size)
  frames = np.zeros((len(sprites), *2 * (_WORLD.frame_size,)), np.float32)
  rows = (corners[:, :1] + size)[:, :, None]
  columns = (corners[:, 1:] + size)[:, None, :]
  frames[np.arange(len(sprites))[:, None, None], rows, columns] = sprites
  return frames


def clean_frames(
  sprites: Float[np.ndarray, "s 8 8"],
) -> tuple[Float[np.ndarray, "n 24 24 1"], int]:
  """Draws every sprite at every lattice position, undamaged.

  Args:
    sprites: Digits in [0, 1].

  Returns:
    Frames, sprite slowest, and the number of positions.
  """
  corners = lattice_corners()
  repeated = np.repeat(sprites, len(corners), axis=0)
  frames = paste(repeated, np.tile(corners, (len(sprites), 1)))
  return frames[..., None], len(corners)


def lattice_corners() -> Int[np.ndarray, "p 2"]:
  """Returns all lattice positions of a sprite's top-left corner."""
  axis = np.arange(0, _WORLD.reach + 1, _WORLD.lattice)
  return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def _bilinear(
  sprites: Float[np.ndarray, "s 8 8"],
  y: Float[np.ndarray, "s 8 8"],
  x: Float[np.ndarray, "s 8 8"],
) -> Float[np.ndarray, "s 8 8"]:
  """Samples sprites at pixel coordinates; outside of them is black."""
  size = sprites.shape[-1]
  padded = np.pad(sprites, ((0, 0), (1, 2), (1, 2)))
  y, x = (np.clip(a + 1, 0, size + 0.999) for a in (y, x))
  row, column = y.astype(int), x.astype(int)
  y, x = y - row, x - column
  n = np.arange(len(sprites))[:, None, None]
  upper = (1 - x) * padded[n, row, column] + x * padded[n, row, column + 1]
  row = row + 1
  lower = (1 - x) * padded[n, row, column] + x * padded[n, row, column + 1]
  return ((1 - y) * upper + y * lower).astype(np.float32)


def _corners(rng: np.random.Generator, num: int) -> Int[np.ndarray, "n 2"]:
  """Draws corners: mostly lattice points, one in five anywhere."""
  lattice = lattice_corners()
  free = rng.integers(0, _WORLD.reach + 1, (num, 2))
  on_lattice = lattice[rng.integers(len(lattice), size=num)]
  return np.where(rng.random((num, 1)) < 0.2, free, on_lattice)


def _second_corners(
  rng: np.random.Generator, corners: Int[np.ndarray, "n 2"]
) -> Int[np.ndarray, "n 2"]:
  """Draws the place of a second digit: 4 px away, or anywhere else."""
  num, step, reach = len(corners), _WORLD.lattice, _WORLD.reach
  offsets = lattice_corners()[1:]  # without (0, 0): never the same place
  near = _NEIGHBOURS[rng.integers(len(_NEIGHBOURS), size=num)]
  inside = (corners + near >= 0) & (corners + near <= reach)
  near = corners + np.where(inside, near, -near)
  far = corners // step * step + offsets[rng.integers(len(offsets), size=num)]
  # The lattice is cyclic here, so all other places of it are equally likely.
  far = far % (reach + step)
  close = np.abs(far - corners).max(1, keepdims=True) < step
  return np.where(close | (rng.random((num, 1)) < 0.5), near, far)


def _break(
  rng: np.random.Generator,
  sprites: Float[np.ndarray, "n 8 8"],
  masks: Bool[np.ndarray, "m 8 8"],
) -> Float[np.ndarray, "n 8 8"]:
  """Cuts a random mask out of each sprite, one that costs enough ink."""
  kept = np.einsum("nyx,myx->nm", sprites, masks)
  kept = kept / sprites.sum((1, 2))[:, None]
  # A mask over an empty corner leaves the digit whole: such a mask is only
  # chosen where no other costs a quarter of the ink, and then the best one.
  choice = rng.random(kept.shape) * (kept <= 0.75) + (kept > 0.75) * (1 + kept)
  return sprites * masks[choice.argmin(1)]


def _make_masks() -> dict[str, Bool[np.ndarray, "4 8 8"]]:
  """Returns what is kept of a sprite, by kind of fragment."""
  row, column = np.indices((_WORLD.sprite_size,) * 2)
  upper, left = row < _WORLD.sprite_size // 2, column < _WORLD.sprite_size // 2
  halves = [upper, ~upper, left, ~left]
  quarters = [~(r & c) for r in (upper, ~upper) for c in (left, ~left)]
  return {"half": np.stack(halves), "quarter": np.stack(quarters)}


def _damage(
  rng: np.random.Generator, frames: Float[np.ndarray, "n 24 24"]
) -> Float[np.ndarray, "n 24 24"]:
  """Adds slight blur to most frames and noise of sigma 0..0.08 to all."""
  num = len(frames)
  blur = rng.uniform(0, 0.15, (num, 1, 1)) * (rng.random((num, 1, 1)) < 0.7)
  blur = blur.astype(np.float32)
  for _ in range(2):  # rows, then columns: each pass swaps the axes
    padded = np.pad(frames, ((0, 0), (1, 1), (0, 0)))
    frames = (1 - 2 * blur) * frames + blur * (padded[:, 2:] + padded[:, :-2])
    frames = frames.swapaxes(1, 2)
  sigma = rng.uniform(0, 0.08, (num, 1, 1)).astype(np.float32)
  noise = rng.standard_normal(frames.shape, dtype=np.float32)
  return np.clip(frames + sigma * noise, 0.0, 1.0)


_MASKS = _make_masks()
_NEIGHBOURS = _WORLD.lattice * np.array(
  [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
)
