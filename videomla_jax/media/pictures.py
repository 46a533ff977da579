"""Reads pictures: PNG, JPEG, WebP and GIF, told by their content.

Pillow knows dozens of other formats, some of which start programs; none of them
is tried. A picture becomes upright, eight bits deep, sRGB, opaque, and of the
size of a frame. What of this was needed is said.
"""

import io
import os
from typing import NamedTuple
import warnings

import numpy as np
from PIL import Image, ImageCms

from videomla_jax.media import changes as changes_lib
from videomla_jax.media import files
from videomla_jax.media import fitting
from videomla_jax.media import orientation

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
# Half a gigabyte while a picture is converted. Pillow holds a WebP four times.
MOST_PIXELS = 1 << 26
_MOST_OF_FORMAT = {"WEBP": 1 << 25}
MOST_BYTES = 1 << 28  # of the file
# Every scan of a JPEG visits every block, however few bytes it has. Programs
# write about ten.
_MOST_SCANS = 200

_ORIENTATION = 0x0112  # EXIF
_SCAN = b"\xff\xda"  # JPEG
_PNG_DEPTH = 24  # the byte of a PNG that holds its bits per channel


class Picture(NamedTuple):
  """A picture that was read.

  Attributes:
    frame: Its pixels in the wanted form.
    changes: What was changed on the way.
  """

  frame: fitting.Frame
  changes: changes_lib.Changes


def read(path: str | os.PathLike[str], shape: fitting.FrameShape) -> Picture:
  """Reads a picture and fits it to a frame.

  Args:
    path: The file.
    shape: Size and channels of the frame.

  Raises:
    files.Unusable: If it is none of the formats, too large or damaged.
  """
  with files.open_regular(path) as file:
    data = file.read(MOST_BYTES + 1)
  if len(data) > MOST_BYTES:
    raise files.Unusable(f"it has more than {MOST_BYTES >> 20} MiB")
  changes = changes_lib.Changes()
  # Pillow's warnings quote what the file holds.
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      return Picture(_read(data, shape, changes), changes)
    except files.Unusable:
      raise
    except Image.DecompressionBombError as error:
      raise files.Unusable(_too_large(MOST_PIXELS)) from error
    except Image.UnidentifiedImageError as error:
      raise files.Unusable("it is no PNG, JPEG, WebP or GIF") from error
    # On damaged files Pillow raises whatever its code runs into: IndexError,
    # struct.error, zlib.error, SyntaxError, MemoryError and many more.
    except Exception as error:
      raise files.Unusable("it is damaged or ends too early") from error


def _read(
  data: bytes, shape: fitting.FrameShape, changes: changes_lib.Changes
) -> fitting.Frame:
  """Decodes a picture and brings it into the form of a frame."""
  picture, turn, profile = _decode(data, changes)
  if turn is not None:
    picture = picture.transpose(turn)
    changes.add("turned", f"{orientation.words(turn)}, as its EXIF data say")
  fitting.describe(picture.size, shape, changes)
  picture = fitting.fit(picture, shape)
  picture = _to_srgb(picture, profile, changes)
  if picture.mode == "RGBA":
    changes.add(
      "background", f"transparent pixels laid on {fitting.BACKGROUND}"
    )
  return fitting.to_frame(picture, shape)


def _decode(
  data: bytes, changes: changes_lib.Changes
) -> tuple[Image.Image, orientation.Turn, object]:
  """Returns the pixels as stored, how to turn them, and their profile."""
  with Image.open(io.BytesIO(data), formats=FORMATS) as stored:
    _check_cost(stored, data)
    _note_animation(stored, changes)
    stored.load()
    if stored.format == "PNG" and data[_PNG_DEPTH] == 16:
      changes.add("depth", "16 bits a channel became 8")
    profile = stored.info.get("icc_profile")
    return _eight_bits(stored), _turn(stored), profile


def _check_cost(picture: Image.Image, data: bytes) -> None:
  """Refuses what would take too much memory or time, before it is decoded."""
  width, height = picture.size
  most = _MOST_OF_FORMAT.get(picture.format or "", MOST_PIXELS)
  if width * height > most:
    raise files.Unusable(_too_large(most))
  if picture.format == "JPEG" and data.count(_SCAN) > _MOST_SCANS:
    raise files.Unusable(
      f"it is a JPEG of more than {_MOST_SCANS} scans; save it anew"
    )


def _too_large(most: int) -> str:
  return f"it is too large; make it smaller than {most // 10**6} megapixels"


def _turn(picture: Image.Image) -> orientation.Turn:
  """Reads how to turn a picture; damaged EXIF data say nothing."""
  try:
    return orientation.from_exif(picture.getexif().get(_ORIENTATION))
  except Exception:  # A picture is no worse for them; any error is possible.
    return None


def _note_animation(picture: Image.Image, changes: changes_lib.Changes) -> None:
  """Notes that the other frames of an animation are left out."""
  # Phones store several sizes of a picture in one JPEG, which is no animation.
  moves = picture.format in ("GIF", "WEBP", "PNG")
  if moves and getattr(picture, "is_animated", False):
    changes.add("first frame", "the first frame of an animation is used")


def _eight_bits(picture: Image.Image) -> Image.Image:
  """Converts a picture to RGB, RGBA or CMYK of eight bits a channel."""
  if picture.mode.startswith("I"):
    return _from_deep_grey(picture)
  if picture.has_transparency_data:
    # `convert` copies even what needs no conversion.
    rgba = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    # Many files have a channel of transparency that is opaque everywhere.
    return rgba if fitting.hides(rgba) else rgba.convert("RGB")
  kept = picture.mode in ("RGB", "CMYK")
  return picture if kept else picture.convert("RGB")


def _from_deep_grey(picture: Image.Image) -> Image.Image:
  """Converts 16 bits of grey; Pillow itself would cut off above 255."""
  values = np.asarray(picture).astype(np.uint16)
  grey = Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
  hidden = picture.info.get("transparency")
  if isinstance(hidden, int):  # One grey value is transparent.
    opaque = np.where(values == hidden, 0, 255).astype(np.uint8)
    grey.putalpha(Image.fromarray(opaque))
  return grey


def _to_srgb(
  picture: Image.Image, profile: object, changes: changes_lib.Changes
) -> Image.Image:
  """Applies a colour profile; a picture without one is sRGB already."""
  plain = "RGBA" if picture.mode == "RGBA" else "RGB"
  if not isinstance(profile, bytes):
    return picture.convert(plain)
  try:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    name = ImageCms.getProfileDescription(source)
    if picture.mode != "CMYK" and "sRGB" in name:
      return picture
    converted = ImageCms.profileToProfile(
      picture, source, ImageCms.createProfile("sRGB"), outputMode=plain
    )
  except Exception:  # Profiles of other colour spaces, and damaged ones.
    changes.add("colours", "its colour profile cannot be used and is left out")
    return picture.convert(plain)
  assert converted is not None  # only in place it is
  changes.add("colours", "colours converted to sRGB from its own profile")
  return converted
