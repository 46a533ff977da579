"""Turns decoded frames of clips into upright pictures of eight bits in sRGB."""

import struct

import av
from av.video import reformatter
import numpy as np
from PIL import Image

from videomla_jax.media import changes as changes_lib
from videomla_jax.media import fitting
from videomla_jax.media import hdr
from videomla_jax.media import orientation

# Transfer functions of high dynamic range (H.273): PQ and HLG.
_HDR: dict[int, str] = {
  reformatter.ColorTrc.SMPTE2084: "PQ",
  reformatter.ColorTrc.ARIB_STD_B67: "HLG",
}
_WIDEST = 32.0  # Pixels that are farther from square are a damaged header.


class FilmFrames:
  """Converts frames one by one, and notes what was changed."""

  def __init__(self, changes: changes_lib.Changes) -> None:
    """Starts without any frame.

    Args:
      changes: Takes the notes.
    """
    self._changes = changes
    self._reformatter = reformatter.VideoReformatter()

  def fitted(
    self, frame: av.VideoFrame, shape: fitting.FrameShape, *, aspect: float
  ) -> fitting.Frame:
    """Returns a frame turned, scaled, cut, opaque, grey or RGB.

    Args:
      frame: As it was decoded.
      shape: Size and channels of the result.
      aspect: Width of a pixel over its height, as stored.
    """
    picture, turn = self._picture(frame), turn_of(frame)
    if turn is not None:
      picture = picture.transpose(turn)
      text = f"{orientation.words(turn)}, as the file says"
      self._changes.add("turned", text)
      aspect = 1 / aspect if orientation.swaps_sides(turn) else aspect
    fitting.describe(picture.size, shape, self._changes, aspect=aspect)
    picture = fitting.fit(picture, shape, aspect=aspect)
    return fitting.to_frame(self._to_srgb(frame, picture), shape)

  def _picture(self, frame: av.VideoFrame) -> Image.Image:
    """Converts the colours of a frame; its alpha stays if it hides anything."""
    self._note(frame)
    mode = "RGBA" if _may_hide(frame) else "RGB"
    target = "rgba" if mode == "RGBA" else "rgb24"
    # Range and matrix are those that the file names, else BT.601 in limited
    # range, as FFmpeg and what is built on it have it.
    converted = self._reformatter.reformat(frame, threads=1, format=target)
    picture = Image.fromarray(np.ascontiguousarray(converted.to_ndarray()))
    if mode == "RGBA":
      if not fitting.hides(picture):
        return picture.convert("RGB")
      self._changes.add(
        "background", f"transparent pixels laid on {fitting.BACKGROUND}"
      )
    return picture

  def _to_srgb(self, frame: av.VideoFrame, picture: Image.Image) -> Image.Image:
    """Brings high dynamic range down, after scaling: fewer pixels."""
    transfer = _HDR.get(frame.color_trc)
    if transfer is None or picture.mode != "RGB":
      return picture
    self._changes.add(
      "colours",
      f"high dynamic range ({transfer}) became sRGB; what is brighter than a "
      "white page is white",
    )
    return Image.fromarray(hdr.to_srgb(np.asarray(picture), transfer))

  def _note(self, frame: av.VideoFrame) -> None:
    """Notes what a frame has that the result has not."""
    bits = max((c.bits for c in frame.format.components), default=8)
    if bits > 8:
      self._changes.add("depth", f"{bits} bits a channel became 8")
    if frame.interlaced_frame:
      self._changes.add(
        "interlaced",
        "lines of two moments were left in one frame, since it is interlaced",
      )
    if frame.is_corrupt:
      self._changes.add("damage", "some frames are damaged and used as shown")


def turn_of(frame: av.VideoFrame) -> orientation.Turn:
  """Returns how a frame is turned to be shown.

  Args:
    frame: A decoded frame.
  """
  data = frame.side_data.get("DISPLAYMATRIX")
  if data is None or len(bytes(data)) != 36:
    return None
  return orientation.from_matrix(struct.unpack("=9i", bytes(data)))


def displayed_size(frame: av.VideoFrame, aspect: float) -> tuple[int, int]:
  """Returns rows and columns of square pixels, upright.

  Args:
    frame: A decoded frame.
    aspect: Width of a pixel over its height, as stored.
  """
  width, height = round(frame.width * aspect), frame.height
  if orientation.swaps_sides(turn_of(frame)):
    return width, height
  return height, width


def pixel_aspect(stream: av.video.stream.VideoStream) -> float:
  """Returns the width of a pixel over its height; 1 if that is not known.

  Args:
    stream: A stream of an open file.
  """
  aspect = float(stream.sample_aspect_ratio or 1)
  return aspect if 1 / _WIDEST <= aspect <= _WIDEST else 1.0


def _may_hide(frame: av.VideoFrame) -> bool:
  """Says whether a pixel format has transparency, by itself or its palette."""
  return frame.format.has_palette or any(
    c.is_alpha for c in frame.format.components
  )
