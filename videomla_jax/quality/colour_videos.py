"""Videos of the colour world that are judged: prompts, windows, real clips.

All rows of a table show the same prompts. Those of a model begin with the same
noise, whatever its window.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
from jaxtyping import UInt8
import numpy as np

from videomla_jax.generation import job as job_lib
from videomla_jax.generation import pipeline as pipeline_lib
from videomla_jax.models import window as window_lib
from videomla_jax.runtime import progress_bar
from videomla_jax.small_world import worlds
from videomla_jax.small_world.colour import prompts as prompts_lib
from videomla_jax.small_world.colour import words
from videomla_jax.small_world.colour import world

Videos = UInt8[np.ndarray, "V T 64 64 3"]

DECAY = 0.999  # weight that an averaging sink keeps per chunk


def _average(own: window_lib.Window, decay: float) -> window_lib.Window:
  """Returns a window whose sink averages what leaves it."""
  frames = max(1, own.sink_frames)
  return dataclasses.replace(
    own, sink="average", sink_frames=frames, sink_decay=decay
  )


def _first(own: window_lib.Window, **sizes: int | None) -> window_lib.Window:
  """Returns a window whose sink keeps the first frames."""
  changed: dict[str, Any] = dict(sink="first", sink_decay=DECAY, **sizes)
  return dataclasses.replace(own, **changed)


# By the name of a row, what it makes of the model's own window and the decay of
# an averaging sink.
WINDOWS: dict[str, Callable[[window_lib.Window, float], window_lib.Window]] = {
  "sink0": lambda own, decay: _first(own, sink_frames=0),
  "sink1": lambda own, decay: _first(own, sink_frames=1),
  "average": _average,
  "full": lambda own, decay: _first(own, local_frames=None),
}


def held_out(number: int) -> list[prompts_lib.Prompt]:
  """Returns prompts that training never shows, every other one with a wall.

  Args:
    number: How many; the prompts of the world are repeated beyond their own
      number, and more than half of those have a wall.
  """
  texts = worlds.WORLDS[worlds.COLOUR_WORLD].held_out()
  every = [prompts_lib.parse(text) for text in texts]
  walls = [x for x in every if x.wall]
  others = [x for x in every if not x.wall]
  shorter = min(len(walls), len(others))
  order = [x for pair in zip(walls, others, strict=False) for x in pair]
  order += walls[shorter:] + others[shorter:]
  return [order[i % len(order)] for i in range(number)]


def make(
  job: job_lib.Job,
  pipeline: pipeline_lib.Pipeline,
  *,
  batch: int,
  name: str,
) -> Videos:
  """Makes one video of each prompt of a job, with a progress bar.

  Args:
    job: The request, checked against its model.
    pipeline: Network and codec.
    batch: Videos side by side.
    name: What the progress bar says.
  """
  total, done = len(job.request.prompts), []
  with progress_bar.Progress(
    total * job.num_frames, name, unit="frame"
  ) as progress:
    for start in range(0, total, batch):
      numbers = range(start, min(start + batch, total))
      part, pieces = part_of(job, numbers, batch), []
      for piece in part.stream(pipeline, part.embed(part.request.prompts)):
        pieces.append(piece[: len(numbers)])
        progress.update(len(numbers) * piece.shape[1])
      done.append(np.concatenate(pieces, axis=1))
  return np.concatenate(done)


def part_of(job: job_lib.Job, numbers: Sequence[int], size: int) -> job_lib.Job:
  """Returns the job of some videos, filled up by the last one again.

  So there is one program, and a video does not depend on how many there are.
  """
  rows = [*numbers, *[numbers[-1]] * (size - len(numbers))]
  texts = tuple(job.request.prompts[i] for i in rows)
  return dataclasses.replace(
    job,
    request=dataclasses.replace(job.request, prompts=texts),
    video_seeds=tuple(job.seeds[i] for i in rows),
  )


def real_clips(
  prompts: Sequence[prompts_lib.Prompt],
  *,
  num_frames: int,
  seed: int,
  batch: int = 24,
) -> Videos:
  """Draws a clip of each prompt in held-out handwriting.

  Args:
    prompts: One per clip.
    num_frames: Frames of a clip.
    seed: Seed of handwriting, places and walls.
    batch: Clips drawn together.
  """
  choices = np.stack([words.choices_of(x) for x in prompts])
  film = jax.jit(
    functools.partial(world.film, num_frames=num_frames, split="test")
  )
  key = jax.random.key(seed)
  return np.concatenate(
    [
      np.asarray(film(key, choices[i : i + batch], first=np.int32(i)).video)
      for i in range(0, len(choices), batch)
    ]
  )
