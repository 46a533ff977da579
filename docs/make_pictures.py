"""Makes the two pictures of the README from the model that is shipped.

  make pictures

demo.webp: a part of the four videos of `make demo`, side by side. It starts
after the first seconds, which are the weakest (docs/training.md has numbers).
cache.png: what the cache holds at one moment of one of these videos.

Both lie on a card of their own colour, so that they are legible on light and on
dark pages.
"""

import json
import pathlib
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, UInt8
import matplotlib
from matplotlib import patches
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videomla_jax.diffusion import flow
from videomla_jax.diffusion import sampling
from videomla_jax.diffusion import stream
from videomla_jax.generation import job
from videomla_jax.generation import mp4
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import prompts

CARD, TEXT, FAINT = "#161b22", "#f0f3f6", "#9ea7b3"
SINK, HISTORY, CHUNK = "#f2a33a", "#79b8ff", "#7ee787"

START_SECONDS, LOOP_SECONDS = 9, 12
TILE, GAP, MARGIN, FONT_SIZE = 216, 16, 20, 18  # pixels

STILL_SECONDS, STILL_ROW = 30, 1  # of the videos of the demo
NOISE_LEVEL = 0.4  # at which the chunk is shown that is being denoised


def demo_picture(folder: pathlib.Path) -> list[Image.Image]:
  """Returns the frames of demo.webp.

  Args:
    folder: Where `make demo` left its report and its videos.
  """
  report = json.loads((folder / "demo.json").read_text())
  videos = [mp4.read_mp4(folder / name)[0] for name in report["videos"]]
  first = int(START_SECONDS * report["fps"])
  last = first + int(LOOP_SECONDS * report["fps"])
  return [
    _demo_frame(
      [_tile(video[t], report["height"]) for video in videos],
      report["prompts"],
      time=f"second {t / report['fps']:.0f} of 60",
    )
    for t in range(first, last)
  ]


def _tile(frame: UInt8[np.ndarray, "H W 3"], height: int) -> Image.Image:
  """Undoes the enlargement of the video and enlarges for the picture."""
  pixels = Image.fromarray(frame).resize((height, height), Image.Resampling.BOX)
  return pixels.resize((TILE, TILE), Image.Resampling.NEAREST)


def _demo_frame(
  tiles: list[Image.Image], captions: list[str], *, time: str
) -> Image.Image:
  line = int(FONT_SIZE * 1.35)
  width = len(tiles) * (TILE + GAP) - GAP + 2 * MARGIN
  height = TILE + 3 * line + 2 * MARGIN
  # Drawn four times as large, since Pillow's own corners are not smooth.
  card = Image.new("RGBA", (4 * width, 4 * height), f"{CARD}00")
  area = (0, 0, 4 * width - 1, 4 * height - 1)
  ImageDraw.Draw(card).rounded_rectangle(area, 56, fill=CARD)
  picture = card.resize((width, height), Image.Resampling.BOX)
  draw = ImageDraw.Draw(picture)
  fonts = pathlib.Path(matplotlib.get_data_path(), "fonts/ttf")
  font = ImageFont.truetype(fonts / "DejaVuSans.ttf", FONT_SIZE)
  small = ImageFont.truetype(fonts / "DejaVuSans.ttf", FONT_SIZE - 4)
  for i, (tile, caption) in enumerate(zip(tiles, captions)):
    x = MARGIN + i * (TILE + GAP)
    picture.paste(tile, (x, MARGIN))
    what, _, how = caption.partition(" moving ")
    for row, text in enumerate((what, f"moving {how}")):
      y = MARGIN + TILE + 12 + row * line
      draw.text((x + TILE / 2, y), text, TEXT, font, anchor="ma")
  draw.text((width - MARGIN, height - 12), time, FAINT, small, anchor="rs")
  return picture


class Moment(NamedTuple):
  """What the network sees while it denoises one chunk.

  Attributes:
    held: Frame in each slot of the cache.
    made: Frames of the chunk.
    pictures: Decoded latents of `held`, then of `made`, values in 0..1.
  """

  held: Int[np.ndarray, "slots"]
  made: Int[np.ndarray, "T"]
  pictures: Float[np.ndarray, "N H W"]


def moment(report: dict[str, object]) -> Moment:
  """Rolls a video of the demo out to the moment of the still.

  Args:
    report: The report of `make demo`: its model, prompts and seeds.
  """
  model = model_lib.load(str(report["checkpoint"]))
  window = model.config.window
  tokens = jnp.asarray(prompts.tokenize_batch(report["prompts"]))
  video = stream.Stream(
    model.dit,
    model.encode_text(tokens),
    job.keys_of(report["seeds"]),
    frame=model.latent_shape(),
    window=window,
    sampler=sampling.few_step(shift=model.config.shift),
    max_frames=int(60 * model.config.fps),
  )
  chunk = int(STILL_SECONDS * model.config.fps) // window.chunk_frames
  # The stream works one chunk ahead of what it hands out.
  clips = [next(video)[STILL_ROW] for _ in range(chunk - 1)]
  held = np.array(video.state.cache.frame[STILL_ROW])
  clips += [next(video)[STILL_ROW] for _ in range(2)]
  made = np.arange(window.chunk_frames) + chunk * window.chunk_frames
  assert held.max() == made[0] - 1

  latents = jnp.concatenate(clips)
  noise = jax.random.normal(jax.random.key(0), latents[made].shape)
  noisy = flow.add_noise(latents[made], noise, jnp.float32(NOISE_LEVEL))
  shown = jnp.concatenate([latents[held], noisy])
  pictures = model.codec.decode(shown[None])[0, ..., 0]
  return Moment(held, made, np.clip(np.asarray(pictures), 0, 1))


def cache_picture(now: Moment, *, sink_frames: int = 1) -> plt.Figure:
  """Draws the slots of the cache, the chunk, and what is overwritten next."""
  slots, length = len(now.held), len(now.made)
  frames = np.concatenate([now.held, now.made])
  groups = np.repeat([0, 1, 2], [sink_frames, slots - sink_frames, length])
  colours = [(SINK, HISTORY, CHUNK)[g] for g in groups]
  left = np.arange(len(frames)) * 1.1 + groups * 0.28  # in widths of a picture

  width, bottom, top = left[-1] + 1, -1.62, 1.78
  figure = plt.figure(figsize=(1.2 * (width + 0.5), 1.2 * (top - bottom)))
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set(xlim=(-0.25, width + 0.25), ylim=(bottom, top), aspect="equal")
  axes.axis("off")
  axes.add_patch(
    patches.FancyBboxPatch(
      (-0.1, bottom + 0.15),
      width + 0.2,
      top - bottom - 0.3,
      boxstyle="round,pad=0.12",
      fc=CARD,
      ec="none",
      zorder=0,
    )
  )
  for x, colour, picture in zip(left, colours, now.pictures):
    axes.imshow(
      picture,
      cmap="gray",
      vmin=0,
      vmax=1,
      extent=(x, x + 1, 0, 1),
      interpolation="nearest",
      zorder=1,
    )
    frame = patches.Rectangle((x, 0), 1, 1, fill=False, ec=colour, lw=2.5)
    axes.add_patch(frame)
  axes.set(xlim=(-0.25, width + 0.25), ylim=(bottom, top))
  _labels(axes, left, frames, colours, slots=slots)
  _groups(axes, left, groups)
  _arrows(axes, left, now, sink_frames=sink_frames)
  return figure


def _labels(
  axes: plt.Axes,
  left: Float[np.ndarray, "N"],
  frames: Int[np.ndarray, "N"],
  colours: list[str],
  *,
  slots: int,
) -> None:
  """Writes frame and position below each picture, the slot above it."""
  positions = np.argsort(np.argsort(frames))
  style = dict(ha="center", va="center")
  for i, x in enumerate(left + 0.5):
    axes.text(x, -0.17, f"frame {frames[i]}", color=TEXT, size=12, **style)
    position = f"position {positions[i]}"
    axes.text(x, -0.4, position, color=FAINT, size=10.5, **style)
    if i < slots:
      axes.text(x, 1.13, f"slot {i}", color=colours[i], size=10.5, **style)


def _groups(
  axes: plt.Axes, left: Float[np.ndarray, "N"], groups: Int[np.ndarray, "N"]
) -> None:
  """Writes above each group of pictures what it is."""
  names = (
    ("sink", "kept for ever"),
    ("history", "a ring: the newest frames"),
    ("the chunk that is being denoised", f"sees all {len(left)} frames"),
  )
  for group, (colour, name) in enumerate(zip((SINK, HISTORY, CHUNK), names)):
    x = left[groups == group][0]
    axes.text(x, 1.5, name[0], color=colour, size=13, weight="bold")
    axes.text(x, 1.3, name[1], color=FAINT, size=10.5)


def _arrows(
  axes: plt.Axes,
  left: Float[np.ndarray, "N"],
  now: Moment,
  *,
  sink_frames: int,
) -> None:
  """Shows which slot each frame of the chunk will be written to."""
  slots = len(now.held)
  ring = np.arange(sink_frames, slots)
  oldest_first = ring[np.argsort(now.held[ring])]
  for i, slot in enumerate(oldest_first[: len(now.made)]):
    start, end = left[slots + i] + 0.5, left[slot] + 0.5
    depth = -0.78 - 0.17 * i
    axes.plot(
      [start, start, end, end],
      [-0.55, depth, depth, -0.66],
      color=CHUNK,
      lw=1.6,
      solid_joinstyle="round",
    )
    axes.plot(end, -0.62, "^", color=CHUNK, ms=7)
  text = (
    "When the chunk is clean, its frames overwrite the oldest ones where they "
    "lie. Nothing is moved."
  )
  axes.text(left[-1] + 1, -1.38, text, color=TEXT, size=11, ha="right")


def main(source: str, target: str) -> None:
  """Writes both pictures.

  Args:
    source: Folder with what `make demo` wrote.
    target: Folder for the pictures.
  """
  folder = pathlib.Path(target)
  frames = demo_picture(pathlib.Path(source))
  frames[0].save(
    folder / "demo.webp",
    save_all=True,
    append_images=frames[1:],
    duration=1000 * LOOP_SECONDS // len(frames),
    loop=0,
    lossless=True,
    method=6,
  )
  report = json.loads(pathlib.Path(source, "demo.json").read_text())
  figure = cache_picture(moment(report))
  figure.savefig(folder / "cache.png", dpi=150, transparent=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
