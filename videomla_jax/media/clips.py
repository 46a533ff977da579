"""Reads clips of a video at a wanted size, frame rate and length.

A clip's frame k shows what a player would show at second start + k / fps: the
last frame that began by then. Frames are turned upright, brought to square
pixels, scaled until they cover the wanted size, and cropped to the centre.
"""

import collections
from collections.abc import Iterator
import contextlib
import dataclasses
import math
import os
from typing import NamedTuple

import av
from jaxtyping import UInt8
import numpy as np

from videomla_jax.media import changes as changes_lib
from videomla_jax.media import containers
from videomla_jax.media import decoding
from videomla_jax.media import files
from videomla_jax.media import film_frames
from videomla_jax.media import fitting

_TICK = 1e-3  # seconds: time stamps are rounded by less
_SEEK_FROM = 2.0  # seconds: up to here it is faster to decode than to seek
_MARGIN = 2.0  # seconds by which the length that a file names may be wrong
_REPEAT = 1 << 11  # pixels that cost as much to decode as to show one again
_LONGEST = 10**7  # seconds; files that name more are damaged


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipShape:
  """Names the size, length and rate that every clip is brought to.

  Attributes:
    height: Pixel rows.
    width: Pixel columns.
    num_frames: Pixel frames.
    fps: Frames per second.
  """

  height: int
  width: int
  num_frames: int
  fps: float | int

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value <= 0:
        raise ValueError(
          f"clip.{field.name}={value} must be positive; use 1 or more."
        )

  @property
  def frame(self) -> fitting.FrameShape:
    """The form of one frame."""
    return fitting.FrameShape(height=self.height, width=self.width)


class Facts(NamedTuple):
  """Holds what a file says about itself.

  Attributes:
    height: Pixel rows as displayed.
    width: Pixel columns as displayed.
    fps: Frames per second; None if unknown.
    seconds: Length; None if unknown.
  """

  height: int
  width: int
  fps: float | None
  seconds: float | None


class Part(NamedTuple):
  """The frames of a clip that were wanted.

  Attributes:
    frames: The frames, at the wanted rate.
    total: How many the whole clip has at that rate, as far as it was read.
    changes: What was changed on the way.
  """

  frames: UInt8[np.ndarray, "t h w c"]
  total: int
  changes: changes_lib.Changes


class Video:
  """An open file whose first frame has been decoded.

  Attributes:
    changes: What has been changed so far.
  """

  def __init__(
    self,
    container: av.container.InputContainer,
    path: str | os.PathLike[str],
  ) -> None:
    """Decodes the first frame of an open file.

    Args:
      container: The file as PyAV opened it.
      path: The same file.

    Raises:
      files.Unusable: If it has no video or no frame.
    """
    self.changes = changes_lib.Changes()
    self._container, self._path = container, path
    self._frames = decoding.Frames(container, self.changes)
    self._film = film_frames.FilmFrames(self.changes)
    with containers.explained():
      self._aspect = film_frames.pixel_aspect(self._frames.stream)
    # Decoding one frame shows damage early, and `facts` reads the rotation from
    # it.
    self._first: tuple[float, av.VideoFrame] | None = next(self._frames)

  def facts(self) -> Facts:
    """Returns size, rate and length of the file; call it before any frame."""
    assert self._first is not None  # until clips are cut
    with containers.explained():
      size = film_frames.displayed_size(self._first[1], self._aspect)
      return Facts(*size, self._frames.rate, self._seconds())

  def clips(
    self,
    shape: ClipShape,
    *,
    start: float | int = 0.0,
    seconds: float | None = None,
    max_clips: int = 1,
  ) -> Iterator[UInt8[np.ndarray, "T h w 3"]]:
    """Yields consecutive clips; it may be called once.

    Args:
      shape: Size, length and rate of every clip.
      start: Second of the video where the first clip begins.
      seconds: Length of the segment to cut; None goes to the end.
      max_clips: Most clips; a last one that is too short is dropped.

    Yields:
      RGB frames.
    """
    taken: list[np.ndarray] = []
    for frame in self._sampled(
      shape.frame, start=start, seconds=seconds, fps=shape.fps
    ):
      taken.append(frame)
      if len(taken) == shape.num_frames:
        yield np.stack(taken)
        self._frames.renew()
        taken, max_clips = [], max_clips - 1
        if not max_clips:
          return

  def last(
    self, shape: fitting.FrameShape, *, fps: float | int, most: int
  ) -> Part:
    """Reads the newest frames; it may be called once, in place of `clips`.

    Args:
      shape: Form of every frame.
      fps: Frames per second.
      most: Most frames that are kept.

    Raises:
      files.Unusable: If not even one frame can be read.
    """
    # A long clip is not decoded from its beginning, if its length is known.
    seconds = self._seconds()
    if seconds is None:
      seconds = decoding.measure(self._path)
    seconds = min(seconds or 0.0, _LONGEST) - _MARGIN - most / fps
    skipped = max(0, math.floor(seconds * fps))
    if skipped / fps <= _SEEK_FROM:
      skipped = 0
    part = self._to_end(shape, fps=fps, most=most, skipped=skipped)
    if skipped and len(part.frames) < most:  # It is shorter than it says.
      self._seek(0.0)
      part = self._to_end(shape, fps=fps, most=most, skipped=0)
    if not len(part.frames):
      raise files.Unusable("it holds no frames")
    return part

  def stored(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yields every frame once, in its own size and upright, as RGB."""
    for _, frame in self._from_first():
      with containers.explained():
        height, width = film_frames.displayed_size(frame, 1.0)
        shape = fitting.FrameShape(height=height, width=width)
        picture = self._film.fitted(frame, shape, aspect=1.0)
      yield picture

  def _to_end(
    self,
    shape: fitting.FrameShape,
    *,
    fps: float | int,
    most: int,
    skipped: int,
  ) -> Part:
    """Reads from a frame of the wanted rate to the end, and keeps the newest.

    Frames before damage are good, so they are taken, and the damage is noted.
    """
    newest: collections.deque[np.ndarray] = collections.deque(maxlen=most)
    total = skipped
    try:
      for frame in self._sampled(shape, start=skipped / fps, fps=fps):
        newest.append(frame)
        total += 1
    except decoding.TooMuchWork:
      raise
    except files.Unusable as error:
      if not newest:
        raise
      self.changes.add(
        "damage",
        f"only the first {total / fps:.2f} s used, before damage ({error})",
      )
    form = (shape.height, shape.width, shape.channels)
    frames = np.stack(newest) if newest else np.zeros((0, *form), np.uint8)
    return Part(frames, total, self.changes)

  def first(
    self, shape: fitting.FrameShape, *, fps: float | int, most: int
  ) -> Part:
    """Reads the first frames; it may be called once, in place of `clips`.

    Args:
      shape: Form of every frame.
      fps: Frames per second.
      most: Most frames that are read.

    Raises:
      files.Unusable: If the file is damaged before so many frames.
    """
    frames = []
    for frame in self._sampled(shape, start=0.0, fps=fps):
      frames.append(frame)
      if len(frames) == most:
        break
    if not frames:
      raise files.Unusable("it holds no frames")
    return Part(np.stack(frames), len(frames), self.changes)

  def _sampled(
    self,
    shape: fitting.FrameShape,
    *,
    start: float | int,
    fps: float | int,
    seconds: float | None = None,
  ) -> Iterator[fitting.Frame]:
    """Yields frames at even times, a frame as often as it is shown."""
    self._note_rate(fps)
    # Seeking goes back to a key frame, which may lie seconds before.
    if start > _SEEK_FROM:
      self._seek(start)
    end = np.inf if seconds is None else start + seconds - _TICK
    count = 0
    due = float(start)
    for frame, until in self._shown():
      picture = None  # scaled at first use
      while (due := start + count / fps) < min(until - _TICK, end):
        if picture is None:
          self._frames.spend(frame.width * frame.height)
          with containers.explained():
            picture = self._film.fitted(frame, shape, aspect=self._aspect)
        self._frames.spend(_REPEAT)
        yield picture
        count += 1
      if due >= end:
        return

  def _shown(self) -> Iterator[tuple[av.VideoFrame, float]]:
    """Yields frames, and the second until which each is shown."""
    shown, time = None, 0.0
    for time, frame in self._from_first():
      if shown is not None:
        yield shown, time
      shown = frame
    if shown is not None:  # the last one for as long as a frame is
      yield shown, time + max(self._frames.period, 2 * _TICK)
      self._note_end(time + self._frames.period)

  def _from_first(self) -> Iterator[tuple[float, av.VideoFrame]]:
    if self._first is not None:
      yield self._first
    yield from self._frames

  def _seek(self, start: float | int) -> None:
    """Goes to a frame at or before a time, if need be to the first one."""
    self._frames.seek(start)
    self._first = None
    if start:
      # Formats without an index lead anywhere, even behind the time.
      with contextlib.suppress(files.Unusable):
        self._first = next(self._frames, None)
      if self._first is None or self._first[0] > start + _TICK:
        self._seek(0.0)

  def _seconds(self) -> float | None:
    stream = self._frames.stream
    seconds = None
    if stream.duration and stream.time_base:
      seconds = float(stream.duration * stream.time_base)
    elif self._container.duration:
      seconds = self._container.duration / av.time_base
    return seconds if seconds and 0 < seconds < _LONGEST else None

  def _note_rate(self, fps: float | int) -> None:
    rate = self._frames.rate
    if rate is not None and abs(rate / fps - 1) > 1e-3:
      self.changes.add(
        "rate",
        f"resampled from {rate:.4g} to {fps:.4g} frames per second",
      )

  def _note_end(self, end: float) -> None:
    """Notes that a file ends earlier than it says."""
    seconds = self._seconds()
    if seconds is not None and end < seconds - max(0.5, 0.05 * seconds):
      self.changes.add(
        "damage", f"it ends after {end:.2f} s and says {seconds:.2f} s"
      )


@contextlib.contextmanager
def open_video(path: str | os.PathLike[str]) -> Iterator[Video]:
  """Opens a file for the `with` block.

  Args:
    path: File with a video stream.

  Yields:
    The open video.

  Raises:
    files.Unusable: If it is missing, empty, damaged or no video, at once or
      while it is decoded inside the `with` block.
  """
  with containers.open_container(path) as container:
    yield Video(container, path)
