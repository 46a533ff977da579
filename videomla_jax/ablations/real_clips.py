"""Real film in the small world's frames: other data for the same networks.

Films are cut and shrunk to grey frames of 24 x 24 pixels, which the codec of
the small world turns into latents. There are no prompts. The last fifth of each
film is held out, so that no frame of it was trained on.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, UInt8
import numpy as np

from videomla_jax.generation import given_frames
from videomla_jax.media import fitting
from videomla_jax.small_world import prompts
from videomla_jax.small_world import world

FPS = 8  # real motion is slow at four frames a second and 24 pixels
_MOST = 4000  # frames of a film
_HELD_OUT = 5  # one part of so many


class Films(NamedTuple):
  """All frames, and where clips may begin; arrays of a program.

  Attributes:
    frames: Frames of all films, one film behind the other.
    train: First frames of clips that are trained on.
    test: First frames of clips that are held out.
  """

  frames: UInt8[Array | np.ndarray, "n 24 24 1"]
  train: Int32[Array | np.ndarray, "clips"]
  test: Int32[Array | np.ndarray, "held_out"]


def read(paths: Sequence[str], *, num_frames: int) -> Films:
  """Reads films whole.

  Args:
    paths: Files of video.
    num_frames: Frames of a clip.

  Raises:
    ValueError: If a file cannot be read, or is too short for two clips.
  """
  side = world.World().frame_size
  shape = fitting.FrameShape(height=side, width=side, channels=1)
  frames, train, test, offset = [], [], [], 0
  for path in paths:
    film = given_frames.read_start(path, shape=shape, fps=FPS, most=_MOST)
    n = len(film.frames)
    # At least one clip is held out, and no frame is shared.
    held_out = max(n // _HELD_OUT, num_frames)
    if n < held_out + num_frames:
      raise ValueError(
        f"clip={path!r} has {n} frames at {FPS} a second, but a clip to train "
        f"on and one to hold out need {2 * num_frames}; give a longer film."
      )
    first = np.arange(n - num_frames + 1, dtype=np.int32)
    train.append(offset + first[: n - held_out - num_frames + 1])
    test.append(offset + first[n - held_out :])
    frames.append(film.frames)
    offset += n
  return Films(*map(np.concatenate, (frames, train, test)))


def batch(
  films: Films, key: Array, *, size: int, num_frames: int, split: str = "train"
) -> dict[str, Array]:
  """Returns clips that begin anywhere, in the form of `traced_world.batch`.

  Args:
    films: What `read` returned.
    key: Random key.
    size: Clips.
    num_frames: Frames of a clip, as it was read for.
    split: "train" or "test".
  """
  begins = jnp.asarray(films.train if split == "train" else films.test)
  chosen = jax.random.choice(key, begins, (size,))
  video = jnp.asarray(films.frames)[chosen[:, None] + jnp.arange(num_frames)]
  tokens = jnp.full((size, prompts.NUM_TOKENS), prompts.PADDING, jnp.int32)
  return {"video": video, "tokens": tokens}
