"""Measures of a video that need no weights: flicker, drift, jumps of chunks.

A video is read once, frame by frame, into a few numbers per frame and one per
pair of neighbours (`Series`). Everything else is arithmetic on those, with d_t
the mean absolute difference of frames t and t + 1 over all pixels and channels,
in grey levels 0..255:

  frame_difference    mean of d_t
  temporal_flickering 1 - mean(d_t) / 255, VBench's dimension of this name
  drift_NAME          mean of a statistic over the last seconds, minus (or, for
                      sharpness, over) its mean over the first seconds
  chunk_jump          mean of d_t where a chunk begins, minus the mean elsewhere
  chunk_ratio         the same as a ratio; 1 if chunks leave no trace

VBench takes its dimension of videos that a filter found to be still; of moving
ones it falls with the motion.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os

from jaxtyping import Float, UInt8
import numpy as np

from videomla_jax.media import clips
from videomla_jax.media import files

Frame = UInt8[np.ndarray, "h w c"]
Values = dict[str, float | None]

FORMAT = 1  # counts what changes the numbers of a video
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of BT.601
_GREY = 255.0

# What each number is; the order is that of tables.
MEANINGS: dict[str, str] = {
  "temporal_flickering": "1 - frame difference / 255, VBench's formula",
  "frame_difference": "mean change between frames, grey levels",
  "largest_difference": "largest change between two frames, grey levels",
  "drift_brightness": "last - first seconds, 0..1",
  "drift_contrast": "last - first seconds, 0..1",
  "drift_saturation": "last - first seconds, 0..1",
  "drift_sharpness": "last / first seconds",
  "chunk_jump": "change where chunks begin - elsewhere, grey levels",
  "chunk_ratio": "change where chunks begin / elsewhere",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunks:
  """At which pixel frames the chunks of a video begin.

  Attributes:
    first: Pixel frames of the first chunk.
    following: Pixel frames of every other chunk.
  """

  first: int
  following: int

  def __post_init__(self) -> None:
    if self.first < 1 or self.following < 1:
      raise ValueError(
        f"chunks.first={self.first} and chunks.following={self.following} must"
        " both be at least 1; Wan with chunks of three has 9 and 12."
      )

  def begins(self, num_frames: int) -> list[int]:
    """Returns the first frame of every chunk but the first."""
    return [*range(self.first, num_frames, self.following)]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Series:
  """What is kept of the frames of one video.

  Attributes:
    fps: Frames per second.
    brightness: Mean luma of every frame, 0..1.
    contrast: Standard deviation of its luma, 0..1.
    saturation: Mean of (max - min) / max over the channels of its pixels.
    sharpness: Variance of the Laplacian of its luma.
    change: Mean absolute difference of neighbours, grey levels.
  """

  fps: float
  brightness: Float[np.ndarray, "T"]
  contrast: Float[np.ndarray, "T"]
  saturation: Float[np.ndarray, "T"]
  sharpness: Float[np.ndarray, "T"]
  change: Float[np.ndarray, "T-1"]

  @classmethod
  def of(cls, frames: Iterable[Frame], *, fps: float | int) -> "Series":
    """Reads frames one by one; two are in memory at a time.

    Args:
      frames: RGB or grey frames of one size.
      fps: Frames per second.

    Raises:
      ValueError: If there is no frame, or they differ in size.
    """
    statistics: list[tuple[float, ...]] = []
    change: list[float] = []
    before: np.ndarray | None = None
    for frame in frames:
      if before is not None:
        if frame.shape != before.shape:
          raise ValueError(
            f"frames of {before.shape} are followed by one of {frame.shape}"
          )
        change.append(difference(before, frame))
      statistics.append(_statistics(frame))
      before = frame
    if not statistics:
      raise ValueError("it has no frames")
    columns = np.array(statistics).T
    return cls(
      fps=float(fps),
      brightness=columns[0],
      contrast=columns[1],
      saturation=columns[2],
      sharpness=columns[3],
      change=np.array(change, np.float64),
    )

  @property
  def num_frames(self) -> int:
    """Frames of the video."""
    return len(self.brightness)


def difference(one: Frame, other: Frame) -> float:
  """Returns the mean absolute difference of two frames, grey levels.

  Args:
    one: A frame.
    other: Another one of the same size.
  """
  # Bytes are subtracted without sign: the larger minus the smaller.
  apart = np.maximum(one, other) - np.minimum(one, other)
  return float(apart.mean(dtype=np.float64))


def _statistics(frame: Frame) -> tuple[float, float, float, float]:
  """Returns brightness, contrast, saturation and sharpness of a frame."""
  if frame.shape[-1] == 3:
    luma = frame.astype(np.float32) @ _LUMA / np.float32(_GREY)
    # Channel by channel: reducing the short last axis takes ten times as long.
    red, green, blue = (frame[..., i] for i in range(3))
    most = np.maximum(np.maximum(red, green), blue)
    least = np.minimum(np.minimum(red, green), blue)
    shares = (most - least) / np.maximum(most, 1).astype(np.float32)
    saturation = float(shares.mean(dtype=np.float64))
  else:
    luma = frame[..., 0].astype(np.float32) / np.float32(_GREY)
    saturation = 0.0
  laplacian = (
    luma[:-2, 1:-1]
    + luma[2:, 1:-1]
    + luma[1:-1, :-2]
    + luma[1:-1, 2:]
    - 4 * luma[1:-1, 1:-1]
  )
  sharpness = float(laplacian.var(dtype=np.float64)) if laplacian.size else 0.0
  return (
    float(luma.mean(dtype=np.float64)),
    float(luma.std(dtype=np.float64)),
    saturation,
    sharpness,
  )


def measure(
  series: Series, *, chunks: Chunks | None, drift_seconds: float | int
) -> Values:
  """Measures one video.

  Args:
    series: What was read of it.
    chunks: Where its chunks begin; None if it has none.
    drift_seconds: Length of the beginning and of the end that are compared; of
      a short video each is at most half.

  Returns:
    A number by each name of `MEANINGS`; None where it has no meaning: any
    change of a single frame, the ratio to no change at all.
  """
  return {
    **_flicker(series),
    **_drift(series, drift_seconds),
    **_jumps(series, chunks),
  }


def _flicker(series: Series) -> Values:
  if not len(series.change):
    return dict.fromkeys(
      ("temporal_flickering", "frame_difference", "largest_difference")
    )
  mean = float(series.change.mean())
  return {
    "temporal_flickering": (_GREY - mean) / _GREY,
    "frame_difference": mean,
    "largest_difference": float(series.change.max()),
  }


def _drift(series: Series, seconds: float | int) -> Values:
  length = min(series.num_frames // 2, max(1, round(seconds * series.fps)))
  found: Values = {}
  for name in ("brightness", "contrast", "saturation", "sharpness"):
    values, key = getattr(series, name), f"drift_{name}"
    if not length:
      found[key] = None
      continue
    first, last = float(values[:length].mean()), float(values[-length:].mean())
    if name == "sharpness":
      found[key] = last / first if first else None
    else:
      found[key] = last - first
  return found


def _jumps(series: Series, chunks: Chunks | None) -> Values:
  nothing: Values = dict(chunk_jump=None, chunk_ratio=None)
  if chunks is None:
    return nothing
  begins = np.zeros(len(series.change), bool)
  # change[t] lies between the frames t and t + 1.
  begins[[x - 1 for x in chunks.begins(series.num_frames)]] = True
  if begins.all() or not begins.any():
    return nothing
  there = float(series.change[begins].mean())
  elsewhere = float(series.change[~begins].mean())
  ratio = there / elsewhere if elsewhere else None
  return dict(chunk_jump=there - elsewhere, chunk_ratio=ratio)


def read_series(path: str | os.PathLike[str]) -> Series:
  """Reads a file of video, of which two frames are in memory at a time.

  Args:
    path: The file.

  Raises:
    ValueError: If it cannot be read to its end, in words that name it.
  """
  try:
    with clips.open_video(path) as video:
      rate = video.facts().fps
      if rate is None:
        raise files.Unusable("it does not say its frame rate")
      return Series.of(video.stored(), fps=rate)
  except (files.Unusable, ValueError) as error:
    raise ValueError(
      f"video {os.fspath(path)!r} cannot be measured: {error}; make it again,"
      " or move it away."
    ) from error


def summarise(videos: Sequence[Values]) -> dict[str, dict[str, float]]:
  """Returns mean, standard deviation and number of each measure.

  Args:
    videos: What `measure` returned; None does not count.
  """
  found: dict[str, dict[str, float]] = {}
  for name in MEANINGS:
    values = [x[name] for x in videos if x.get(name) is not None]
    if values:
      numbers = np.array(values, np.float64)
      spread = numbers.std(ddof=1) if len(values) > 1 else 0.0
      found[name] = dict(
        mean=float(numbers.mean()), std=float(spread), n=len(values)
      )
  return found


def table(summary: Mapping[str, Mapping[str, float]]) -> str:
  """Returns a summary in Markdown.

  Args:
    summary: What `summarise` returned.
  """
  lines = ["| measure | mean ± std | videos | meaning |", "|---|---|---|---|"]
  for name, x in summary.items():
    number = f"{x['mean']:.4f} ± {x['std']:.4f}"
    lines.append(f"| {name} | {number} | {x['n']:.0f} | {MEANINGS[name]} |")
  return "\n".join(lines)
