"""Clips to train a VAE on: drawn inside the program, or cut from films.

What a step sees follows from the seed and the number of the step, so a run that
was stopped goes on with the clips that it would have seen.
"""

import collections
from collections.abc import Iterator
import concurrent.futures
import copy
import dataclasses
import functools
import pathlib
from typing import Protocol, runtime_checkable

from absl import logging
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, UInt8
import numpy as np

from videomla_jax.autoencoding import settings as settings_lib
from videomla_jax.data import video_folder
from videomla_jax.media import clips as clips_lib
from videomla_jax.media import files
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import world

Clips = UInt8[Array, "B t h w 3"]
_AHEAD = 2  # groups of batches that are read while others are trained on
_HELD_OUT = 0.2  # last part of every film
_TRIES = 20  # draws of a clip that cannot be read
_TEST_STEP = 2**31  # first step of held-out clips, which no run reaches


@runtime_checkable
class Source(Protocol):
  """Where clips come from."""

  def steps(self, first: int, counts: list[int]) -> Iterator[np.ndarray]:
    """Yields what calls of the program are given, along a first axis of steps.

    Args:
      first: Number of the first step.
      counts: Steps of each call.
    """

  def clips(self, given: Array) -> Clips:
    """Returns the clips of a step; it is part of the program.

    Args:
      given: What `steps` yielded for this step.
    """

  def of_images(self, batch_size: int) -> "Source":
    """Returns the same source of single frames.

    Args:
      batch_size: Frames of a step.
    """

  def held_out(self, count: int) -> Iterator[Clips]:
    """Yields batches of clips that training does not show.

    Args:
      count: Clips in all, rounded up to whole batches.
    """


@dataclasses.dataclass(frozen=True)
class ColourWorld:
  """Clips of the colour world, drawn by the number of the step.

  Attributes:
    data: Group `data` of a config.
    seed: Seed of the clips.
  """

  data: settings_lib.Data
  seed: int

  def steps(
    self, first: int, counts: list[int]
  ) -> Iterator[Int32[np.ndarray, "n"]]:
    """Yields the numbers of the steps."""
    for count in counts:
      yield np.arange(first, first + count, dtype=np.int32)
      first += count

  def clips(self, given: Int32[Array, ""], split: str = "train") -> Clips:
    """Draws the clips of a step.

    Args:
      given: Number of the step.
      split: "train" or "test".
    """
    data = self.data
    return world.sample(
      jax.random.fold_in(jax.random.key(self.seed), given),
      size=data.batch_size,
      num_frames=data.num_frames,
      split=split,
    ).video

  def of_images(self, batch_size: int) -> "ColourWorld":
    """Returns first frames."""
    data = dataclasses.replace(self.data, num_frames=1, batch_size=batch_size)
    return dataclasses.replace(self, data=data)

  def held_out(self, count: int) -> Iterator[Clips]:
    """Yields batches of held-out handwriting and pairs of digit and colour."""
    draw = jax.jit(functools.partial(self.clips, split="test"))
    for number in range(-(-count // self.data.batch_size)):
      yield draw(jnp.int32(number))


class Films:
  """Clips cut from files of video, at random places.

  Attributes:
    data: Group `data` of a config.
    films: Path and seconds of each film that is long enough.
  """

  def __init__(self, data: settings_lib.Data, seed: int) -> None:
    """Finds the films of a folder.

    Args:
      data: Group `data` of a config.
      seed: Seed of the places.

    Raises:
      ValueError: If there is no folder, or no film is long enough for a clip
        to train on and a held-out one.
    """
    self.data, self._seed = data, seed
    self._shape = clips_lib.ClipShape(
      height=data.height,
      width=data.width,
      num_frames=data.num_frames,
      fps=data.fps,
    )
    # A clip needs a moment more than its frames for the last of them to end.
    self._seconds = (data.num_frames + 1) / data.fps
    folder = video_folder.VideoFolder(data.films)
    self.films: list[tuple[pathlib.Path, float]] = []
    for name in folder.videos():
      seconds = _seconds(folder.root / name)
      if seconds is not None and seconds * _HELD_OUT >= self._seconds:
        self.films.append((folder.root / name, seconds))
    if not self.films:
      raise ValueError(
        f"data.films={data.films!r} holds no video of "
        f"{self._seconds / _HELD_OUT:.1f} s or more, of which the last fifth "
        "is held out; add longer ones, or take fewer frames."
      )

  def steps(
    self, first: int, counts: list[int]
  ) -> Iterator[UInt8[np.ndarray, "n B t h w 3"]]:
    """Yields clips of each call, read while others are trained on."""
    with concurrent.futures.ThreadPoolExecutor(_AHEAD) as pool:
      pending: collections.deque[concurrent.futures.Future] = (
        collections.deque()
      )
      for count in counts:
        pending.append(pool.submit(self._group, first, count))
        first += count
        if len(pending) > _AHEAD:
          yield pending.popleft().result()
      while pending:
        yield pending.popleft().result()

  def clips(self, given: Clips) -> Clips:
    """Returns the clips that were read."""
    return given

  def of_images(self, batch_size: int) -> "Films":
    """Returns frames of the same films."""
    images = copy.copy(self)
    images.data = dataclasses.replace(
      self.data, num_frames=1, batch_size=batch_size
    )
    images._shape = dataclasses.replace(self._shape, num_frames=1)
    return images

  def held_out(self, count: int) -> Iterator[Clips]:
    """Yields batches from the last fifths of films."""
    for number in range(-(-count // self.data.batch_size)):
      step = _TEST_STEP + number
      yield jnp.asarray(self._batch(step, low=1 - _HELD_OUT, high=1.0))

  def _group(self, start: int, count: int) -> UInt8[np.ndarray, "n B t h w 3"]:
    steps = range(start, start + count)
    return np.stack(
      [self._batch(n, low=0.0, high=1 - _HELD_OUT) for n in steps]
    )

  def _batch(
    self, step: int, *, low: float, high: float
  ) -> UInt8[np.ndarray, "B t h w 3"]:
    """Cuts the clips of one step out of a part of the films."""
    rng = np.random.default_rng([self._seed, step])
    clips = [self._cut(rng, low, high) for _ in range(self.data.batch_size)]
    return np.stack(clips)

  def _cut(
    self, rng: np.random.Generator, low: float, high: float
  ) -> UInt8[np.ndarray, "t h w 3"]:
    """Cuts one clip; another place is drawn if a film is damaged there."""
    for _ in range(_TRIES):
      path, seconds = self.films[rng.integers(len(self.films))]
      start = rng.uniform(low * seconds, high * seconds - self._seconds)
      try:
        with clips_lib.open_video(path) as video:
          found = next(video.clips(self._shape, start=max(start, 0.0)), None)
      except files.Unusable as error:
        logging.warning("%s at %.1f s: %s", path, start, error)
        continue
      if found is not None:
        return found
    raise ValueError(
      f"data.films={self.data.films!r}: {_TRIES} places in a row could not be "
      "read; look at the warnings, and take damaged files away."
    )


def _seconds(path: pathlib.Path) -> float | None:
  """Returns the length of a film; None if it is unknown or no film."""
  try:
    with clips_lib.open_video(path) as video:
      return video.facts().seconds
  except files.Unusable as error:
    logging.warning("%s is left out: %s", path, error)
    return None


def open_source(data: settings_lib.Data, seed: int) -> ColourWorld | Films:
  """Opens the clips of a config.

  Args:
    data: Group `data` of the config.
    seed: Seed of the run.

  Raises:
    ValueError: If sizes are not those of the colour world, or there are no
      films.
  """
  if data.kind == "films":
    return Films(data, seed)
  size = motion.SIZE
  if (data.height, data.width) != (size, size):
    raise ValueError(
      f"data.height={data.height} and data.width={data.width} must be {size}, "
      "the size of the colour world; set them back."
    )
  return ColourWorld(data, seed)
