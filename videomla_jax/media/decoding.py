"""Decodes a video stream frame by frame, with times that only grow.

Work is bounded by what is decoded and not by a clock, so that a file is read or
refused alike on every machine.
"""

from collections.abc import Iterator
import contextlib
import os

import av

from videomla_jax.media import changes as changes_lib
from videomla_jax.media import containers
from videomla_jax.media import files

# Pixels that are decoded for one result, 4,800 frames of 1080p in 30 s,
# and the bytes of a file that allow so many. Honest files have fewer pixels a
# byte; a hundred times as many fit into 10 MB.
_MOST_WORK = 10**10
_WORTH = 10**7
_PACKET = 1 << 16  # pixels that cost as much as a packet without any
_SKIPPED = 1 << 10  # pixels that cost as much as a packet that is passed over
# Seconds. A longer pause, or a step back, is a fault of the time stamps: files
# that were joined start again, damaged ones jump anywhere.
_LONGEST_SHOWN = 3600.0
_STEP_BACK = 0.1
_FASTEST = 1000.0  # frames per second; files with more are damaged
_USUAL_RATE = 25.0


class TooMuchWork(files.Unusable):
  """Says that a file would take too long; no part of it is taken instead."""


class Frames(Iterator[tuple[float, av.VideoFrame]]):
  """Frames of the one video stream, each with the second at which it begins.

  Attributes:
    stream: The stream, as PyAV shows it.
    rate: Frames per second; None if the file does not say it.
    last: Second at which the newest frame begins; None before the first.
  """

  def __init__(
    self,
    container: av.container.InputContainer,
    changes: changes_lib.Changes,
  ) -> None:
    """Chooses the stream and decodes nothing yet.

    Args:
      container: An open file.
      changes: Takes notes about damage.

    Raises:
      files.Unusable: If it has no video, or one that is not decoded.
    """
    self._container, self._changes = container, changes
    with containers.explained():
      self.stream = containers.video_stream(container)
      self._decoder = containers.decoder(self.stream)
      self.rate = _rate(self.stream)
      start, tick = self.stream.start_time, self.stream.time_base
      # Streams need not start at 0; players count from their first frame.
      self._origin = float((start or 0) * (tick or 0))
      self._most_work = _MOST_WORK * max(1, (container.size or 0) / _WORTH)
    self._begin()

  def __next__(self) -> tuple[float, av.VideoFrame]:
    return next(self._frames)

  def _begin(self) -> None:
    self.last: float | None = None
    self._shift, self._seeking = 0.0, False
    self._frames = self._decode()
    self.renew()

  def renew(self) -> None:
    """Allows as much work again: a result has been handed out."""
    self._work = 0

  def spend(self, pixels: int) -> None:
    """Counts work.

    Args:
      pixels: How many pixels would take as long to decode.

    Raises:
      TooMuchWork: If it is too much for one result.
    """
    self._work += pixels
    if self._work > self._most_work:
      raise TooMuchWork(
        "it takes too long to decode; cut out the part that is wanted"
      )

  def seek(self, second: float | int) -> None:
    """Goes on from the key frame before a time.

    Args:
      second: Second of the video.

    Raises:
      files.Unusable: If the file cannot be read there.
    """
    with containers.explained():
      time = int((second + self._origin) / (self.stream.time_base or 1))
      self._container.seek(time, stream=self.stream, backward=True)
      self._decoder.flush_buffers()
    self._begin()
    self._seeking = second > 0

  @property
  def period(self) -> float:
    """Seconds for which a frame is shown if nothing else says it."""
    return min(1 / (self.rate or _USUAL_RATE), _LONGEST_SHOWN)

  def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yields frames; damage before the first one is passed over."""
    packets, damage = self._container.demux(self.stream), None
    while (packet := _next_packet(packets)) is not None:
      self.spend(_PACKET)
      try:
        with containers.explained():
          frames = self._decoder.decode(packet)
      except files.Unusable as error:
        if self.last is not None:
          raise
        # A broadcast that was cut begins amid frames that refer to earlier
        # ones.
        damage = damage or error
        continue
      for frame in frames:
        self.spend(frame.width * frame.height)
        self.last = self._time(frame)
        yield self.last, frame
    if self.last is None:
      raise damage or files.Unusable("it holds no frames")

  def _time(self, frame: av.VideoFrame) -> float:
    """Returns the second at which a frame begins, never before another one."""
    following = 0.0 if self.last is None else self.last + self.period
    if frame.time is None:
      self._changes.add(
        "times", f"frames without time stamps taken {self.period:.4g} s apart"
      )
      return following
    time = frame.time - self._origin + self._shift
    if self.last is None and self._seeking:
      return time  # Any second may be the first after seeking.
    before = self.last or 0.0
    if not before - _STEP_BACK <= time <= before + _LONGEST_SHOWN:
      self._changes.add("times", "time stamps that jump taken as going on")
      self._shift += following - time
      time = following
    return max(time, before) if self.last is not None else time


def _rate(stream: av.video.stream.VideoStream) -> float | None:
  """Returns frames per second as a file says it; None if it cannot be."""
  for rate in (stream.average_rate, stream.guessed_rate):
    with contextlib.suppress(ArithmeticError, TypeError, ValueError):
      if rate and 0 < float(rate) <= _FASTEST:
        return float(rate)
  return None


def measure(path: str | os.PathLike[str]) -> float | None:
  """Returns how long a file is that does not say it; nothing is decoded.

  Args:
    path: The file.

  Raises:
    files.Unusable: If it cannot be read.
  """
  with containers.open_container(path) as container:
    frames = Frames(container, changes_lib.Changes())
    start, newest = frames.stream.start_time or 0, None
    packets = container.demux(frames.stream)
    while (packet := _next_packet(packets)) is not None:
      frames.spend(_SKIPPED)
      if packet.pts is not None:
        newest = max(newest or 0, packet.pts - start)
    tick = frames.stream.time_base
    return None if newest is None or tick is None else float(newest * tick)


def _next_packet(packets: Iterator[av.Packet]) -> av.Packet | None:
  with containers.explained():
    return next(packets, None)
