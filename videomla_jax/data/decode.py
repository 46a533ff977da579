"""Decodes clips of a video at a wanted size, frame rate and length.

A clip's frame k shows what a player would show at second start + k / fps: the
last frame that began by then. Frames are turned upright, brought to square
pixels, scaled until they cover the wanted size, and cropped to the centre.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import pathlib
from typing import NamedTuple

import av
from jaxtyping import UInt8
import numpy as np
from PIL import Image

_TICK = 1e-3  # seconds: time stamps are rounded by less
_SEEK_FROM = 2.0  # seconds: up to here it is faster to decode than to seek


class UnusableVideo(Exception):
  """Says why a file cannot be decoded."""


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


class Video:
  """An open file whose first frame has been decoded."""

  def __init__(self, container: av.container.InputContainer) -> None:
    """Decodes the first frame of an open file.

    Args:
      container: The file as PyAV opened it.

    Raises:
      UnusableVideo: If it has no video or no frame.
    """
    self._container = container
    if not container.streams.video:
      raise UnusableVideo("no video stream")
    self._stream = container.streams.video[0]
    # FFmpeg decodes frames and slices in threads only if asked to.
    self._stream.thread_type = "AUTO"
    # Streams need not start at 0; players count from their first frame.
    self._origin = float(
      (self._stream.start_time or 0) * self._stream.time_base
    )
    self._rate = self._stream.average_rate or self._stream.guessed_rate
    # Decoding one frame shows damage early, and `facts` reads the rotation from
    # it.
    self._frames = self._decode()
    self._first: tuple[float, av.VideoFrame] | None
    try:
      self._first = next(self._frames)
    except StopIteration:
      raise UnusableVideo("no frames") from None

  def facts(self) -> Facts:
    """Returns size, rate and length of the file; call it before `clips`."""
    assert self._first is not None  # until clips are cut
    width, height = _displayed_size(self._first[1], self._aspect())
    rate = float(self._rate) if self._rate else None
    return Facts(round(height), round(width), rate, self._seconds())

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
    # Seeking goes back to a key frame, which may lie seconds before.
    if start > _SEEK_FROM:
      self._seek(start)
    taken: list[np.ndarray] = []
    for frame in self._sampled(start, seconds, shape):
      taken.append(frame)
      if len(taken) == shape.num_frames:
        yield np.stack(taken)
        taken, max_clips = [], max_clips - 1
        if not max_clips:
          return

  def _sampled(
    self, start: float | int, seconds: float | None, shape: ClipShape
  ) -> Iterator[np.ndarray]:
    """Yields frames at even times, a frame as often as it is shown."""
    end = np.inf if seconds is None else start + seconds - _TICK
    count = 0
    for frame, until in self._shown():
      picture = None  # scaled at first use
      while (due := start + count / shape.fps) < min(until - _TICK, end):
        if picture is None:
          picture = _fitted(frame, self._aspect(), shape)
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
      yield shown, time + (1 / float(self._rate) if self._rate else 0.0)

  def _from_first(self) -> Iterator[tuple[float, av.VideoFrame]]:
    if self._first is not None:
      yield self._first
    yield from self._frames

  def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yields frames, each with the second at which it begins."""
    for frame in self._container.decode(self._stream):
      if frame.time is None:
        raise UnusableVideo("no time stamps; mux it again")
      yield frame.time - self._origin, frame

  def _seek(self, start: float | int) -> None:
    time = int((start + self._origin) / self._stream.time_base)
    self._container.seek(time, stream=self._stream, backward=True)
    self._frames, self._first = self._decode(), None

  def _aspect(self) -> float:
    """Returns the width of a pixel over its height."""
    aspect = self._stream.sample_aspect_ratio
    return float(aspect) if aspect else 1.0

  def _seconds(self) -> float | None:
    if self._stream.duration:
      return float(self._stream.duration * self._stream.time_base)
    if self._container.duration:
      return self._container.duration / av.time_base
    return None


@contextlib.contextmanager
def open_video(path: str | os.PathLike[str]) -> Iterator[Video]:
  """Opens a file for the `with` block.

  Args:
    path: File with a video stream.

  Yields:
    The open video.

  Raises:
    UnusableVideo: If it is missing, empty, damaged or no video, at once or
      while it is decoded inside the `with` block.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UnusableVideo("no such file")
  try:
    # A playlist under the name of a video must not make this machine fetch.
    options = {"protocol_whitelist": "file"}
    with av.open(str(path), options=options) as container:
      yield Video(container)
  except av.error.FFmpegError as error:
    # Its text has the path of the file, which differs between machines.
    raise UnusableVideo(f"not decodable: {error.strerror}") from error


def _displayed_size(frame: av.VideoFrame, aspect: float) -> tuple[float, float]:
  """Returns width and height in square pixels, turned upright."""
  size = frame.width * aspect, float(frame.height)
  return size[::-1] if frame.rotation % 180 else size


def _fitted(
  frame: av.VideoFrame, aspect: float, shape: ClipShape
) -> UInt8[np.ndarray, "h w 3"]:
  """Returns one frame turned, scaled and cropped."""
  pixels = frame.to_ndarray(format="rgb24")
  # Phones store a rotation instead of turning the pixels.
  pixels = np.rot90(pixels, frame.rotation // 90)
  width, height = _displayed_size(frame, aspect)
  scale = max(shape.width / width, shape.height / height)
  # These shares of the picture are kept along each side.
  kept_width = shape.width / (width * scale)
  kept_height = shape.height / (height * scale)
  rows, columns = pixels.shape[:2]
  left, top = columns * (1 - kept_width) / 2, rows * (1 - kept_height) / 2
  # The crop has fractions of a pixel, so it is left to `resize`: whole pixels
  # would move the picture off its centre.
  box = (left, top, columns - left, rows - top)
  size = (shape.width, shape.height)
  image = Image.fromarray(np.ascontiguousarray(pixels))
  return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=box))
