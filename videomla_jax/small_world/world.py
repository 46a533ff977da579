"""The small world: one real handwritten digit that bounces inside the frame.

The whole motion has a closed form, so every generated video can be judged
against the truth: it is Eq. (1) of `bounce`. Starts on a moving axis are
multiples of the speed, so a wall is always met exactly at a frame and never
overshot.
"""

import dataclasses
import functools
from typing import NamedTuple

from jaxtyping import Float32, Int32, Int64, UInt8
import numpy as np

from videomla_jax.small_world import bounce
from videomla_jax.small_world import prompts

SPLITS = ("train", "test")
NUM_TRAINING_SPRITES = 1500  # of 1797; the rest is held out

# Which of the axes (x, y) a direction moves along.
_MOVING_AXES = {
  "horizontal": (1, 0),
  "vertical": (0, 1),
  "diagonal": (1, 1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
  """Geometry and speeds of the small world.

  Attributes:
    frame_size: Frame height and width in pixels.
    sprite_size: Digit height and width in pixels; 8 is the size of the data.
    lattice: Distance between resting places in pixels.
    slow: Pixels per frame along each moving axis for the word "slow".
    fast: The same for the word "fast".
    fps: Frames per second of the finished video.
  """

  frame_size: int = 24
  sprite_size: int = 8
  lattice: int = 4
  slow: int = 4
  fast: int = 8
  fps: int = 4

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value < 1:
        raise ValueError(f"{field.name}={value} must be positive; use 1 or up.")
    if self.sprite_size != 8:
      raise ValueError(
        f"sprite_size={self.sprite_size} must be 8, the size of the real"
        " digits; change frame_size instead."
      )
    if self.reach < 1:
      raise ValueError(
        f"frame_size={self.frame_size} must exceed"
        f" sprite_size={self.sprite_size} so that the digit can move; use"
        f" {self.sprite_size + self.lattice} or more."
      )
    for name in ("lattice", "slow", "fast"):
      self._require_divides_reach(name)

  @property
  def reach(self) -> int:
    """Largest coordinate of the sprite's top-left corner, R of `bounce`."""
    return self.frame_size - self.sprite_size

  def speed(self, prompt: prompts.Prompt) -> int:
    """Returns the pixels per frame along each moving axis."""
    return {"slow": self.slow, "fast": self.fast}[prompt.speed]

  def _require_divides_reach(self, name: str) -> None:
    value = getattr(self, name)
    if self.reach % value:
      raise ValueError(
        f"{name}={value} must divide frame_size - sprite_size={self.reach} so"
        " that walls are met exactly; use a divisor."
      )


class Clip(NamedTuple):
  """One clip and the truth about it."""

  video: UInt8[np.ndarray, "T H W 1"]
  label: int
  positions: Int32[np.ndarray, "T 2"]
  prompt: prompts.Prompt


@functools.cache
def load_sprites(
  split: str,
) -> tuple[Float32[np.ndarray, "n 8 8"], Int64[np.ndarray, "n"]]:
  """Loads the real handwritten digits of a split.

  Args:
    split: "train" (1500 digits) or "test" (297 held-out digits).

  Returns:
    Images in [0, 1], ink is 1, and labels 0..9; both read-only.

  Raises:
    ValueError: If there is no such split.
  """
  _require_split(split)
  from sklearn import datasets  # takes a second, which no other use needs

  digits = datasets.load_digits()
  # scikit-learn gives ink in steps from 0 to 16.
  images = (digits.images / 16.0).astype(np.float32)
  labels = digits.target.astype(np.int64)
  train = split == "train"
  rows = np.s_[:NUM_TRAINING_SPRITES] if train else np.s_[NUM_TRAINING_SPRITES:]
  for array in (images, labels):
    array.setflags(write=False)  # cached, thus shared by every caller
  return images[rows], labels[rows]


def positions(
  prompt: prompts.Prompt,
  start: tuple[int, int],
  sign: tuple[int, int],
  num_frames: int,
  world: World = World(),
) -> Int32[np.ndarray, "T 2"]:
  """Returns where the digit is in every frame, Eq. (1) of `bounce`.

  Args:
    prompt: Gives the moving axes and the speed.
    start: Top-left corner (x, y) in frame 0, pixels, each 0..world.reach.
    sign: Initial direction along (x, y), each -1 or 1; a resting axis
      ignores it.
    num_frames: Number of frames, at least 1.
    world: Geometry and speeds.

  Returns:
    Top-left corners (x, y) in pixels.

  Raises:
    ValueError: If the start is outside the frame or off the speed's grid, if
      a sign is not -1 or 1, or if there are no frames.
  """
  _require_frames(num_frames)
  moving = _MOVING_AXES[prompt.direction]
  speed = world.speed(prompt)
  for axis in (0, 1):
    _require_start(start, sign, axis, speed if moving[axis] else 1, world)
  velocity = speed * np.array(moving) * np.array(sign)
  time = np.arange(num_frames)[:, None]
  path = bounce.fold(np.array(start) + velocity * time, world.reach)
  return path.astype(np.int32)


def render(
  sprite: Float32[np.ndarray, "h w"],
  positions: Int32[np.ndarray, "T 2"],
  world: World = World(),
) -> UInt8[np.ndarray, "T H W 1"]:
  """Draws a digit at every position on a black background.

  Args:
    sprite: Digit image in [0, 1].
    positions: Top-left corners (x, y) in pixels, inside the frame.
    world: Geometry.

  Returns:
    Video in 0..255.
  """
  pixels = np.rint(sprite * 255.0).astype(np.uint8)
  size = world.frame_size
  video = np.zeros((len(positions), size, size, 1), np.uint8)
  height, width = sprite.shape
  for frame, (x, y) in zip(video, positions, strict=True):
    frame[y : y + height, x : x + width, 0] = pixels
  return video


def sample_clip(
  rng: np.random.Generator,
  prompt: prompts.Prompt | None,
  split: str,
  num_frames: int,
  world: World = World(),
) -> Clip:
  """Draws a random clip: which handwriting, from where, in which sense.

  Args:
    rng: Source of all randomness; the clip is a function of its state.
    prompt: What to show; None draws one of the split's own prompts (training
      prompts for "train", held-out ones for "test").
    split: Which handwriting to use, "train" or "test".
    num_frames: Number of frames, at least 1.
    world: Geometry and speeds.

  Returns:
    Video, label, positions and prompt.

  Raises:
    ValueError: If the split is unknown or there are no frames.
  """
  _require_frames(num_frames)
  images, labels = load_sprites(split)
  if prompt is None:
    choices = split_prompts(split)
    prompt = choices[rng.integers(len(choices))]
  index = rng.choice(np.flatnonzero(labels == prompt.digit))
  start = _sample_start(rng, prompt, world)
  sign = (int(rng.choice((-1, 1))), int(rng.choice((-1, 1))))
  path = positions(prompt, start, sign, num_frames, world)
  return Clip(render(images[index], path, world), prompt.digit, path, prompt)


def split_prompts(split: str) -> tuple[prompts.Prompt, ...]:
  """Returns the prompts that clips of a split may have."""
  _require_split(split)
  if split == "train":
    return prompts.training_prompts()
  return prompts.held_out_prompts()


def _sample_start(
  rng: np.random.Generator, prompt: prompts.Prompt, world: World
) -> tuple[int, int]:
  """Draws a corner; a moving axis starts on the grid of its speed."""
  moving = _MOVING_AXES[prompt.direction]
  steps = [world.speed(prompt) if m else world.lattice for m in moving]
  x, y = (int(s * rng.integers(world.reach // s + 1)) for s in steps)
  return x, y


def _require_start(
  start: tuple[int, int],
  sign: tuple[int, int],
  axis: int,
  step: int,
  world: World,
) -> None:
  name = "xy"[axis]
  if not 0 <= start[axis] <= world.reach or start[axis] % step:
    raise ValueError(
      f"start {name}={start[axis]} must be a multiple of {step} from 0 to"
      f" {world.reach} so that walls are met exactly; use 0."
    )
  if sign[axis] not in (-1, 1):
    raise ValueError(
      f"sign {name}={sign[axis]} must be -1 or 1; to rest on an axis, choose"
      " another direction."
    )


def _require_frames(num_frames: int) -> None:
  if num_frames < 1:
    raise ValueError(
      f"num_frames={num_frames} must be positive; use 1 or more."
    )


def _require_split(split: str) -> None:
  if split not in SPLITS:
    raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}.")
