"""Damaged clips of common containers and codecs."""

import pathlib

import numpy as np

from tests import mutations
from tests.media import films
from videomla_jax.generation import given_frames
from videomla_jax.media import fitting

_SHAPE = fitting.FrameShape(height=16, width=24)
# Name, codec, pixel format, container.
_KINDS = (
  ("h264.mp4", "libx264", "yuv420p", None),
  ("deep.mp4", "libx264", "yuv420p10le", None),
  ("h264.mkv", "libx264", "yuv420p", None),
  ("h264.ts", "libx264", "yuv420p", "mpegts"),
  ("h264.flv", "libx264", "yuv420p", None),
  ("raw.h264", "libx264", "yuv420p", "h264"),
  ("vp9.webm", "libvpx-vp9", "yuv420p", None),
  ("alpha.webm", "libvpx-vp9", "yuva420p", None),
  ("vp8.webm", "libvpx", "yuv420p", None),
  ("old.avi", "mpeg4", "yuv420p", None),
  ("photo.avi", "mjpeg", "yuvj420p", None),
  ("broadcast.mpg", "mpeg2video", "yuv420p", None),
  ("alpha.mov", "png", "rgba", None),
  ("edit.mov", "prores_ks", "yuv422p10le", None),
  ("moving.gif", "gif", "rgb8", None),
)


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  seeds = []
  for name, codec, pixels, container in _KINDS:
    channels = 4 if name.startswith("alpha") else 3
    frames = rng.integers(0, 256, (10, 32, 48, channels), dtype=np.uint8)
    path = films.write(
      folder / name,
      frames,
      rate=25,
      codec=codec,
      pixels=pixels,
      container=container,
      options={"g": "5"},
    )
    seeds.append(mutations.Seed(path, path))
  return seeds


def _read(path: pathlib.Path) -> object:
  return given_frames.read_given(
    image="", clip=path, shape=_SHAPE, fps=16, most=20
  )


READER = mutations.Reader(seeds=_seeds, read=_read)
