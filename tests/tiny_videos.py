"""A folder of small videos with captions, some of them bad, and its config."""

import pathlib
from typing import Any

import numpy as np

from tests import tiny_project
from videomla_jax.generation import mp4

FPS = 8
# Name -> frames, height, width. A clip of the config is 9 frames.
SIZES = {
  "a": (9, 48, 64),
  "b": (20, 64, 48),
  "deep/c": (31, 64, 64),
  "short": (5, 48, 64),
  "silent": (9, 48, 64),
}
CAPTIONS = {
  "a": "a cat sleeps",
  "b": "a quick dog",
  "deep/c": "a brown fox jumps",
  "short": "a lazy dog",
  "broken": "a fox",
}


def frames_of(name: str, seed: int) -> np.ndarray:
  """Frames of a video: smooth random pictures that brighten with time."""
  num, height, width = SIZES[name]
  rng = np.random.default_rng([seed, *name.encode()])
  small = rng.random((num, 4, 4, 3))
  rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
  return (small[:, rows][:, :, columns] * 255).astype(np.uint8)


def write(folder: pathlib.Path, seed: int) -> pathlib.Path:
  """Writes five videos and one file that is none."""
  for name in SIZES:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    mp4.write_mp4(folder / f"{name}.mp4", frames_of(name, seed), fps=FPS)
  (folder / "broken.mp4").write_bytes(b"this is no video")
  for name, caption in CAPTIONS.items():
    (folder / f"{name}.txt").write_text(caption + "\n")
  return folder


def config(videos: pathlib.Path, output: pathlib.Path, **changes: Any) -> Any:
  """Returns a config of `prepare` for them."""
  made = tiny_project.config("prepare", "tiny")
  made.videos, made.output = str(videos), str(output)
  made.clip.update(fps=float(FPS), height=32, width=32)
  made.update({"test_fraction": 0.0, "max_clips": 3} | changes)
  return made
