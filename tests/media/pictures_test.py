"""Tests of pictures: every kind that people have, and what is refused."""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageCms
import pytest

from videomla_jax.media import files
from videomla_jax.media import fitting
from videomla_jax.media import pictures

_SHAPE = fitting.FrameShape(height=32, width=48)


def _image(height: int = 64, width: int = 96) -> Image.Image:
  """Four colours in four quarters."""
  pixels = np.zeros((height, width, 3), np.uint8)
  pixels[: height // 2, : width // 2] = (220, 30, 30)
  pixels[: height // 2, width // 2 :] = (30, 200, 30)
  pixels[height // 2 :, : width // 2] = (30, 30, 220)
  pixels[height // 2 :, width // 2 :] = (128, 128, 128)
  return Image.fromarray(pixels)


def _colours(frame: np.ndarray) -> np.ndarray:
  """The middles of the quarters."""
  height, width, _ = frame.shape
  rows, columns = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
  return np.array([[frame[y, x] for x in columns] for y in rows], np.float64)


_EXPECTED = _colours(np.asarray(_image()))


def _read(path, shape=_SHAPE):
  return pictures.read(path, shape)


@pytest.mark.parametrize(
  ("mode", "name", "options"),
  [
    ("RGB", "a.png", {}),
    ("RGB", "a.jpg", dict(quality=95)),
    ("RGB", "a.jpg", dict(quality=95, progressive=True)),
    ("CMYK", "a.jpg", dict(quality=95)),
    ("P", "a.png", {}),
    ("P", "a.gif", {}),
    ("RGB", "a.webp", dict(lossless=True)),
    ("RGBA", "a.webp", dict(lossless=True)),
    ("RGBA", "a.png", {}),
  ],
)
def test_colours_of_every_kind_come_back(tmp_path, mode, name, options):
  picture = _image().convert(mode)
  if mode == "P":
    picture = _image().quantize(8)
  picture.save(tmp_path / name, **options)
  frame, changes = _read(tmp_path / name)
  assert np.abs(_colours(frame) - _EXPECTED).max() < 8
  assert changes.kinds == ("scaled",)


def test_the_content_tells_the_format_and_not_the_name(tmp_path):
  _image().save(tmp_path / "a.jpg", "PNG")
  assert np.abs(_colours(_read(tmp_path / "a.jpg").frame) - _EXPECTED).max() < 8


@pytest.mark.parametrize(
  "kind",
  ["PPM", "BMP", "TIFF", "EPS", "ICO", "TGA", "PDF", "SGI", "PCX", "AVIF"],
)
def test_other_formats_are_refused_whatever_their_name(tmp_path, kind):
  _image().save(tmp_path / "a.png", kind)
  with pytest.raises(files.Unusable, match="no PNG, JPEG, WebP or GIF"):
    _read(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_exif_turns_and_mirrors_a_picture(tmp_path, orientation, name):
  # EXIF 2.32: where row 0 and column 0 of what is stored are shown.
  undo = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
  }
  stored = _image()
  if orientation in undo:
    stored = stored.transpose(undo[orientation])
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored.save(tmp_path / name, exif=exif, quality=95)
  frame, changes = _read(tmp_path / name)
  assert np.abs(_colours(frame) - _EXPECTED).max() < 12
  assert ("turned" in changes.kinds) == (orientation > 1)


@pytest.mark.parametrize("value", [0, 9])
def test_damaged_exif_data_turn_nothing(tmp_path, value):
  exif = Image.Exif()
  exif[0x0112] = value
  _image().save(tmp_path / "a.jpg", exif=exif, quality=95)
  data = (tmp_path / "a.jpg").read_bytes()
  (tmp_path / "b.jpg").write_bytes(data.replace(b"II*\0", b"II*\xff"))
  for name in ("a.jpg", "b.jpg"):
    frame, _ = _read(tmp_path / name)
    assert np.abs(_colours(frame) - _EXPECTED).max() < 12


def _chunk(kind: bytes, content: bytes) -> bytes:
  check = struct.pack(">I", zlib.crc32(kind + content))
  return struct.pack(">I", len(content)) + kind + content + check


def _png(rows, *, width, bits, colour, extra=b"") -> bytes:
  """A PNG of any depth and kind of colour, which Pillow cannot write."""
  head = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
  packed = zlib.compress(b"".join(b"\0" + row for row in rows))
  return (
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", head)
    + extra
    + _chunk(b"IDAT", packed)
    + _chunk(b"IEND", b"")
  )


_FLAT = fitting.FrameShape(height=1, width=4)


@pytest.mark.parametrize(
  ("colour", "pixels", "expected"),
  [
    (0, [0, 0x4040, 0x8080, 0xFFFF], [0, 64, 128, 255]),  # grey
    (2, [v for v in (0, 0x4040, 0x8080, 0xFFFF) for _ in range(3)], None),
    (
      6,
      [v for v in (0, 0x4040, 0x8080) for _ in range(3) for v in [v]],
      None,
    ),
    (4, [0, 0xFFFF, 0x4040, 0xFFFF, 0x8080, 0xFFFF, 9, 0], [0, 64, 128, 255]),
  ],
)
def test_sixteen_bits_become_eight(tmp_path, colour, pixels, expected):
  if colour == 6:  # RGBA: the last is transparent
    pixels = [0, 0, 0, 65535, *[0x4040] * 3, 65535, *[0x8080] * 3, 65535]
    pixels += [0, 0, 0, 0]
  row = struct.pack(f">{len(pixels)}H", *pixels)
  path = tmp_path / "a.png"
  path.write_bytes(_png([row], width=4, bits=16, colour=colour))
  frame, changes = _read(path, _FLAT)
  assert frame[0, :, 0].tolist() == (expected or [0, 64, 128, 255])
  assert "depth" in changes.kinds


@pytest.mark.parametrize(
  ("bits", "colour", "row", "extra", "expected"),
  [
    # One grey of 16 bits is transparent; a palette's entries; one bit; RGB.
    (16, 0, struct.pack(">4H", 9, 9, 0, 0xFFFF), struct.pack(">H", 9), "wwbw"),
    (1, 0, b"\x50", struct.pack(">H", 1), "bwbw"),
    (2, 3, b"\x1b", b"\xff\x00", "bwbw"),
    (8, 2, bytes([1, 2, 3] * 2 + [0] * 6), struct.pack(">3H", 1, 2, 3), "wwbb"),
  ],
)
def test_transparent_colours_show_the_background(
  tmp_path, bits, colour, row, extra, expected
):
  chunks = _chunk(b"tRNS", extra)
  if colour == 3:
    palette = bytes([0, 0, 0, 9, 9, 9, 0, 0, 0, 255, 255, 255])
    chunks = _chunk(b"PLTE", palette) + chunks
  path = tmp_path / "a.png"
  path.write_bytes(_png([row], width=4, bits=bits, colour=colour, extra=chunks))
  frame, changes = _read(path, _FLAT)
  shown = "".join("w" if v > 250 else "b" for v in frame[0, :, 0])
  assert shown == expected
  assert "background" in changes.kinds


def test_what_lies_below_transparent_pixels_stays_hidden(tmp_path):
  pixels = np.full((64, 96, 4), 255, np.uint8)
  pixels[:, 48:] = (255, 0, 255, 0)
  Image.fromarray(pixels).save(tmp_path / "a.png")
  frame, _ = _read(tmp_path / "a.png")
  assert frame.min() == 255  # not even along the edge


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_first_frame_of_an_animation_is_taken_and_told(tmp_path, name):
  others = [_image().transpose(Image.Transpose.ROTATE_180)]
  options = dict(lossless=True) if name == "a.webp" else {}
  _image().save(tmp_path / name, save_all=True, append_images=others, **options)
  frame, changes = _read(tmp_path / name)
  assert np.abs(_colours(frame) - _EXPECTED).max() < 8
  assert "first frame" in changes.kinds


def test_a_circle_stays_a_circle(tmp_path):
  y, x = np.mgrid[:80, :200]
  disc = ((y - 40) ** 2 + (x - 100) ** 2 < 30**2) * np.uint8(255)
  Image.fromarray(disc).save(tmp_path / "a.png")
  frame, changes = _read(
    tmp_path / "a.png", fitting.FrameShape(height=64, width=64, channels=1)
  )
  inside = frame[..., 0] > 127
  assert abs(int(inside.any(0).sum()) - int(inside.any(1).sum())) <= 1
  assert {"cut", "scaled"} <= {*changes.kinds}


def test_a_colour_profile_is_applied(tmp_path):
  # Blue of a profile whose red and blue are exchanged is red.
  profile = bytearray(
    ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  )
  red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
  profile[red], profile[blue] = profile[blue], profile[red]
  profile = bytes(profile).replace(b"sRGB", b"rBGS")
  profile = profile.replace("sRGB".encode("utf-16-be"), b"\0x\0x\0x\0x")
  picture = Image.new("RGB", (48, 32), (0, 0, 255))
  picture.save(tmp_path / "a.png", icc_profile=profile)
  frame, changes = _read(tmp_path / "a.png")
  assert np.abs(frame[16, 24] - np.array([255, 0, 0.0])).max() < 6
  assert "colours" in changes.kinds
  picture.save(tmp_path / "b.png", icc_profile=profile[:200])
  frame, changes = _read(tmp_path / "b.png")
  assert frame[16, 24].tolist() == [0, 0, 255]
  assert "cannot be used" in changes.texts[0]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "JPEG"])
def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path, kind):
  path = tmp_path / "a"
  side = 16_000
  if kind == "PNG":
    path.write_bytes(_png([b""] * side, width=side, bits=8, colour=2))
  else:
    made = io.BytesIO()
    Image.new("RGB", (80, 60)).save(made, kind, **_LOSSLESS.get(kind, {}))
    path.write_bytes(_enlarge(made.getvalue(), kind, side))
  with pytest.raises(files.Unusable, match="smaller than (67|33) megapixels"):
    _read(path)


_LOSSLESS = dict(WEBP=dict(lossless=True))


def _enlarge(data: bytes, kind: str, side: int) -> bytes:
  """Writes another size into the header of a picture of 80 x 60 pixels."""
  if kind == "GIF":
    new = struct.pack("<HH", side, side)
    return data[:6] + new + data[10:].replace(struct.pack("<HH", 80, 60), new)
  if kind == "JPEG":
    return data.replace(
      struct.pack(">HH", 60, 80), struct.pack(">HH", side, side)
    )
  at = data.index(b"VP8L") + 9
  old = struct.unpack("<I", data[at : at + 4])[0]
  new = old >> 28 << 28 | (side - 1) << 14 | (side - 1)
  return data[:at] + struct.pack("<I", new) + data[at + 4 :]


def test_a_jpeg_of_endless_scans_is_refused(tmp_path):
  made = io.BytesIO()
  _image().save(made, "JPEG", progressive=True)
  data = made.getvalue()
  start = data.rindex(b"\xff\xda")
  scan = data[start:-2]
  (tmp_path / "a.jpg").write_bytes(data[:start] + scan * 300 + data[-2:])
  with pytest.raises(files.Unusable, match="scans"):
    _read(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_texts_that_inflate_are_refused_without_a_word(tmp_path, kind, capfd):
  bomb = zlib.compress(bytes(50_000_000), 9)
  head = {
    b"zTXt": b"a\0\0",
    b"iTXt": b"a\0\1\0\0\0",
    b"iCCP": b"a\0\0",
  }[kind]
  chunk = _chunk(kind, head + bomb)
  row = bytes(12)
  path = tmp_path / "a.png"
  path.write_bytes(_png([row], width=4, bits=8, colour=2, extra=chunk))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    try:
      _read(path, _FLAT)
    except files.Unusable:
      pass
  assert capfd.readouterr() == ("", "")


def test_a_pointer_of_git_lfs_says_what_to_do(tmp_path):
  path = tmp_path / "a.png"
  path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
  with pytest.raises(files.Unusable, match="git lfs pull"):
    _read(path)
