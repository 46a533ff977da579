r"""Makes clips of the colour world to look at, and the picture of its page.

  python docs/make_colour_world.py FOLDER [--split=train] [--seed=0] \
    [--clips=8] [--seconds=8] [--sheet-only]

writes clips into a folder: colour_world.png with frames of each clip, an MP4
file of each clip, and captions.txt. docs/colour_world.png was made by

  python docs/make_colour_world.py docs --seed=4 --clips=6 --seconds=6 \
    --sheet-only
"""

import argparse
import functools
import pathlib
from typing import NamedTuple

import jax
from jaxtyping import UInt8
import numpy as np

from videomla_jax.generation import contact_sheet
from videomla_jax.generation import mp4
from videomla_jax.generation import pixels
from videomla_jax.small_world import world as small_world
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import words
from videomla_jax.small_world.colour import world
from videomla_jax.storage import atomic

COLUMNS, SHEET_SCALE, MP4_SCALE = 9, 2, 6


class Shown(NamedTuple):
  """Clips with their captions."""

  videos: UInt8[np.ndarray, "V T size size 3"]
  captions: list[str]


def clips(*, split: str, seed: int, number: int, num_frames: int) -> Shown:
  """Draws clips.

  Args:
    split: "train" or "test".
    seed: Seed of the clips.
    number: Number of clips.
    num_frames: Frames of each.
  """
  sample = functools.partial(
    world.sample, size=number, num_frames=num_frames, split=split
  )
  drawn = jax.device_get(jax.jit(sample)(jax.random.key(seed)))
  captions = [words.prompt_of(row).text() for row in drawn.choices]
  return Shown(drawn.video, captions)


def write(folder: pathlib.Path, shown: Shown, *, sheet_only: bool) -> None:
  """Writes a contact sheet, and perhaps films and captions.

  Args:
    folder: Where to; it is created if it is missing.
    shown: What to write.
    sheet_only: Whether nothing but the sheet is written.
  """
  num_frames = shown.videos.shape[1]
  frames = np.linspace(0, num_frames - 1, COLUMNS).round().astype(int)
  sheet = contact_sheet.draw(
    shown.videos[:, frames],
    shown.captions,
    fps=motion.FPS,
    scale=SHEET_SCALE,
    frame_indices=frames.tolist(),
  )
  contact_sheet.write_png(folder / "colour_world.png", sheet)
  if sheet_only:
    return
  for i, video in enumerate(shown.videos):
    large = np.stack([pixels.enlarge(frame, MP4_SCALE) for frame in video])
    mp4.write_mp4(folder / f"colour_world_{i}.mp4", large, fps=motion.FPS)
  atomic.write_text(folder / "captions.txt", "\n".join(shown.captions) + "\n")


def main() -> None:
  """Reads the command line and writes the files."""
  parser = argparse.ArgumentParser(description="Shows the colour world.")
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--split", choices=small_world.SPLITS, default="train")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--clips", type=int, default=8)
  parser.add_argument("--seconds", type=float, default=8)
  parser.add_argument("--sheet-only", action="store_true")
  args = parser.parse_args()
  num_frames = 1 + round(args.seconds * motion.FPS)
  shown = clips(
    split=args.split, seed=args.seed, number=args.clips, num_frames=num_frames
  )
  write(args.folder, shown, sheet_only=args.sheet_only)


if __name__ == "__main__":
  main()
