"""Makes the videos that a plan lacks, some side by side.

All texts are embedded first, so that the text encoder is loaded once, and kept
on the host without their padding. Every batch has the same number of rows, the
last one too: there is one program, and a video has the same bytes whichever
others were missing.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
import numpy as np

from videomla_jax.costs import attention_choice
from videomla_jax.generation import job as job_lib
from videomla_jax.generation import mp4
from videomla_jax.generation import pipeline as pipeline_lib
from videomla_jax.quality import folder as folder_lib
from videomla_jax.quality import plan
from videomla_jax.runtime import progress_bar

_TEXTS_AT_ONCE = 256  # embeddings of Wan have 8.4 MB a text on the device

type Row = Shaped[np.ndarray, "used E"]


class _Texts:
  """Embeddings on the host, each without the zeros at its end."""

  def __init__(self, job: job_lib.Job, texts: Sequence[str]) -> None:
    """Embeds texts, and the negative prompt if the sampler has guidance."""
    self._rows: dict[str, Row] = {}
    self._negative: Row | None = None
    self._length = 0
    for i in range(0, len(texts), _TEXTS_AT_ONCE):
      part = texts[i : i + _TEXTS_AT_ONCE]
      rows = np.asarray(job.embed(part))
      self._length = rows.shape[1]
      self._rows |= zip(part, map(_trimmed, rows), strict=False)
      if len(rows) > len(part):
        self._negative = _trimmed(rows[-1])

  def of(self, texts: Sequence[str]) -> Float[Array, "R M E"]:
    """Returns the rows of a batch, then as many negative ones, if any."""
    rows = [self._rows[x] for x in texts]
    if self._negative is not None:
      rows += [self._negative] * len(texts)
    whole = np.zeros((len(rows), self._length, rows[0].shape[1]), rows[0].dtype)
    for target, row in zip(whole, rows, strict=True):
      target[: len(row)] = row
    return jnp.asarray(whole)


def _trimmed(row: Shaped[np.ndarray, "M E"]) -> Row:
  """Returns a row without the padding at its end, as a copy of its own."""
  used = np.flatnonzero(row.any(axis=1))
  return row[: used[-1] + 1 if len(used) else 1].copy()


def batches(
  videos: Sequence[plan.Video], size: int
) -> Iterator[tuple[plan.Video, ...]]:
  """Yields the videos in groups.

  Args:
    videos: What is to be made.
    size: Videos of each group but the last.
  """
  for i in range(0, len(videos), size):
    yield tuple(videos[i : i + size])


def make(
  videos: Sequence[plan.Video],
  folder: folder_lib.Folder,
  job: job_lib.Job,
  *,
  size: int,
) -> None:
  """Makes videos and writes each under its name when it is complete.

  Args:
    videos: What is to be made.
    folder: Where they go.
    job: What all of them have in common, checked against its model.
    size: Videos side by side.

  Raises:
    ValueError: If the text or the frames do not fit the network.
  """
  if not videos:
    return
  texts = _Texts(job, [*dict.fromkeys(x.text for x in videos)])
  pipeline = job.source.load()
  total = len(videos) * job.num_frames
  first = _job_of(job, next(batches(videos, size)), size)
  attention = attention_choice.lines(first.attention(pipeline))
  # Sizes are printed before anything compiles, as `sample` does.
  print(*first.needs(pipeline).lines(), *attention, sep="\n", flush=True)
  with progress_bar.Progress(total, "videos", unit="frame") as progress:
    for group in batches(videos, size):
      part = _job_of(job, group, size)
      _write(part, group, folder, pipeline, texts, progress.update)


def _job_of(
  job: job_lib.Job, group: Sequence[plan.Video], size: int
) -> job_lib.Job:
  """Returns the job of one group, filled up to the size of all.

  What is added is the last video again, which is dropped.
  """
  rows = [*group, *[group[-1]] * (size - len(group))]
  texts = tuple(x.text for x in rows)
  return dataclasses.replace(
    job,
    request=dataclasses.replace(job.request, prompts=texts),
    video_seeds=tuple(x.seed for x in rows),
  )


def _write(
  job: job_lib.Job,
  group: Sequence[plan.Video],
  folder: folder_lib.Folder,
  pipeline: pipeline_lib.Pipeline,
  texts: _Texts,
  tell: Callable[[int], object],
) -> None:
  """Writes one group; `tell` hears how many frames each piece adds to it.

  Whatever ends this early leaves none of the group: half a video would be taken
  for a whole one.
  """
  with contextlib.ExitStack() as stack:
    writers = [
      stack.enter_context(
        mp4.Mp4Writer(
          folder.videos / video.file,
          fps=job.source.fps,
          scale=job.request.output.scale,
        )
      )
      for video in group
    ]
    left = job.num_frames
    for frames in job.chunks(pipeline, texts.of(job.request.prompts)):
      piece = frames[:, :left]
      for writer, video in zip(writers, piece, strict=False):
        writer.append(video)
      left -= piece.shape[1]
      tell(piece.shape[1] * len(group))
