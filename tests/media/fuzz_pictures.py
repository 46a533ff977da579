"""Damaged pictures of every kind that is read."""

import pathlib

import numpy as np
from PIL import Image, ImageCms

from tests import mutations
from videomla_jax.generation import given_frames
from videomla_jax.media import fitting

_SHAPE = fitting.FrameShape(height=16, width=24)
# Mode, name, and options of Pillow.
_KINDS = (
  ("RGB", "rgb.png", {}),
  ("RGBA", "rgba.png", {}),
  ("LA", "la.png", {}),
  ("P", "palette.png", dict(transparency=1)),
  ("1", "bit.png", {}),
  ("I;16", "deep.png", {}),
  ("RGB", "moving.png", dict(save_all=True)),
  ("RGB", "baseline.jpg", {}),
  ("RGB", "progressive.jpg", dict(progressive=True)),
  ("CMYK", "cmyk.jpg", {}),
  ("L", "grey.jpg", {}),
  ("RGB", "lossy.webp", {}),
  ("RGBA", "lossless.webp", dict(lossless=True)),
  ("RGB", "moving.webp", dict(save_all=True)),
  ("P", "still.gif", dict(transparency=1)),
  ("RGB", "moving.gif", dict(save_all=True)),
)


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  exif = Image.Exif()
  exif[0x0112], exif[0x010F] = 6, "maker"
  seeds = []
  for mode, name, options in _KINDS:
    pixels = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    if mode == "I;16":
      picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
      picture = Image.fromarray(pixels, "RGBA").convert(mode)
    if options.get("save_all"):
      options = options | dict(append_images=[picture.rotate(180)])
    if not name.endswith("gif"):
      options = options | dict(exif=exif, icc_profile=profile)
    picture.save(folder / name, **options)
    seeds.append(mutations.Seed(folder / name, folder / name))
  return seeds


def _read(path: pathlib.Path) -> object:
  return given_frames.read_given(
    image=path, clip="", shape=_SHAPE, fps=16, most=20
  )


READER = mutations.Reader(seeds=_seeds, read=_read)
