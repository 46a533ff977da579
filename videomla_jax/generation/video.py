"""Finished videos in memory: shown in a notebook, saved as MP4 files."""

import base64
import dataclasses
import html
import os
import pathlib
import tempfile

from jaxtyping import UInt8
import numpy as np

from videomla_jax.generation import mp4
from videomla_jax.generation import video_files
from videomla_jax.storage import output_folder

Pixels = UInt8[np.ndarray, "B t h w c"]

_SHOWN_HEIGHT = 288  # Screen pixels to which `save` enlarges small videos.


# Equality of arrays is an array, on which a generated `__eq__` would fail.
@dataclasses.dataclass(frozen=True, eq=False)
class Video:
  """Finished videos, one per prompt.

  Attributes:
    pixels: Grey or RGB frames, 0..255.
    fps: Frames per second.
    prompts: What each video shows.
    given: What was done to the given picture or clip, in sentences.
  """

  pixels: Pixels
  fps: float | int
  prompts: tuple[str, ...]
  given: tuple[str, ...] = ()

  def __repr__(self) -> str:
    shape = " x ".join(map(str, self.pixels.shape))
    return f"Video({self.prompts}, {shape}, {self.fps:g} frames per second)"

  def _repr_html_(self) -> str:
    """Shows the videos in a notebook."""
    # A notebook keeps its outputs, so the files go into the page itself.
    with tempfile.TemporaryDirectory() as folder:
      files = [pathlib.Path(path).read_bytes() for path in save(self, folder)]
    return "".join(
      f"<figure><video controls loop src='data:video/mp4;base64,"
      f"{base64.b64encode(data).decode()}'></video>"
      f"<figcaption>{html.escape(prompt)}</figcaption></figure>"
      for data, prompt in zip(files, self.prompts, strict=True)
    )


def save(
  video: Video,
  folder: str | os.PathLike[str],
  *,
  name: str = "video",
  scale: int = 0,
) -> list[str]:
  """Writes one MP4 file per video.

  Args:
    video: The videos.
    folder: Where to write; created if it is missing.
    name: First word of every file name; the prompt follows.
    scale: Screen pixels per pixel, along one side; 0 makes small videos large
      enough to look at.

  Returns:
    The paths of the files, in the order of the prompts.

  Raises:
    ValueError: If the folder is not writable, the name has folders in it, or
      the scale is negative.
  """
  output_folder.check_name(name, field="name")
  # The scale is a whole number, so that every pixel stays a square of one
  # colour.
  scale = scale or max(1, _SHOWN_HEIGHT // video.pixels.shape[2])
  files = video_files.paths(
    output_folder.check(folder), video.prompts, name=name
  )
  for path, frames in zip(files, video.pixels, strict=True):
    mp4.write_mp4(path, frames, fps=video.fps, scale=scale)
  return [str(path) for path in files]
