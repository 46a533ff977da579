"""Makes one shard of a data set: the unit of work, resuming and reporting.

A job names its inputs and its outputs and depends on nothing else, so it may
run here, in another process, or on another machine that has the same folders.
A shard is a pair of files, `train-00003.array_record` and, written after it,
`train-00003.json` with counts: when the second exists, the shard is finished.
Each is written under a temporary name and renamed.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterator
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import pathlib
from typing import Any, NamedTuple

import numpy as np

from videomla_jax.data import dataset
from videomla_jax.data import encode
from videomla_jax.data import filters as filters_lib
from videomla_jax.data import record_files
from videomla_jax.data import records
from videomla_jax.data import sealed_json
from videomla_jax.data import table
from videomla_jax.media import clips
from videomla_jax.media import files
from videomla_jax.storage import atomic
from videomla_jax.storage import ordinary_files

TOO_SHORT = "too short"
PLAN_FILE = "plan.json"
_MAX_COUNTS = 64 * ordinary_files.MIB
NULL_TEXT = "null_text"  # "split" of the job that embeds the negative prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Says how every input is treated.

  Attributes:
    encoder: Names what makes latents and embeddings.
    sizes: Shapes of the records.
    clip: What videos are brought to; None for prompts alone.
    filters: What a file must fulfil.
    max_clips: Most clips that are taken of one input.
    negative_prompt: Text that is embedded once, for guidance and for prompts
      that training drops.
  """

  encoder: encode.EncoderConfig
  sizes: records.RecordShape
  clip: clips.ClipShape | None
  filters: filters_lib.Filters
  max_clips: int = 1
  negative_prompt: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """Describes one shard and how it is made.

  Attributes:
    split: Split such as "train"; `NULL_TEXT` embeds the negative prompt.
    index: Number of the shard within its split, from 0.
    items: Inputs of the shard.
    videos: Folder that the inputs' paths start from.
    folder: Where unfinished data sets keep their shards.
    settings: How inputs are treated.
  """

  split: str
  index: int
  items: tuple[table.Item, ...]
  videos: str
  folder: str
  settings: Settings

  @property
  def data(self) -> pathlib.Path:
    """File that holds the records of the shard."""
    suffix = "npy" if self.split == NULL_TEXT else "array_record"
    return pathlib.Path(self.folder) / f"{self._stem}.{suffix}"

  @property
  def counts(self) -> pathlib.Path:
    """File that says that the shard is finished, and what it counted."""
    return pathlib.Path(self.folder) / f"{self._stem}.json"

  @property
  def is_done(self) -> bool:
    """Whether the shard is finished and whole; one that is not is made anew."""
    try:
      read_counts(self)
    except ValueError:
      return False
    return True

  @property
  def _stem(self) -> str:
    return f"{self.split}-{self.index:05d}"


def run(job: Job, on_item: Callable[[], object] = lambda: None) -> None:
  """Makes a shard unless it is finished.

  Args:
    job: The shard.
    on_item: Called after every input.
  """
  if job.is_done:
    return
  pathlib.Path(job.folder).mkdir(parents=True, exist_ok=True)
  make = _make_null_text if job.split == NULL_TEXT else _make_records
  # The data are written before the counts, so whoever sees counts has whole
  # data.
  with atomic.replacing(job.data) as temporary:
    counts = make(job, temporary, on_item)
    with temporary.open("rb") as file:
      counts["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    counts["bytes"] = temporary.stat().st_size
  sealed_json.write(job.counts, counts)


def read_counts(job: Job) -> dict[str, Any]:
  """Returns what a finished shard counted.

  Args:
    job: The shard.

  Raises:
    ValueError: If the shard is damaged.
  """
  try:
    counts = sealed_json.read(job.counts, limit=_MAX_COUNTS)
  except ordinary_files.BadFile as error:
    raise _damaged(job, f"its file of counts {error}") from error
  reason = dataset.fault_of_shard(job.data, counts, digests=False)
  if reason:
    raise _damaged(job, f"it {reason}")
  return counts


def faults(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields name and reason of each damaged file of an unfinished data set.

  Args:
    folder: Where an unfinished data set keeps its shards.
  """
  for path in sorted(folder.glob("*.json")):
    try:
      counts = sealed_json.read(path, limit=_MAX_COUNTS)
    except ordinary_files.BadFile as error:
      yield path.name, str(error)
      continue
    if path.name == PLAN_FILE:
      continue
    is_text = path.name.startswith(NULL_TEXT)
    data = path.with_suffix(".npy" if is_text else ".array_record")
    reason = dataset.fault_of_shard(data, counts, digests=True)
    if reason:
      yield data.name, reason


def _damaged(job: Job, reason: str) -> ValueError:
  return ValueError(
    f"shard {str(job.data)!r} is damaged ({reason}); delete"
    f" {str(job.counts)!r} and start the same command again."
  )


def _make_null_text(
  job: Job, path: pathlib.Path, on_item: Callable[[], object]
) -> dict[str, Any]:
  """Writes the embedding of the negative prompt; returns counts."""
  del on_item
  encoder = encode.load(job.settings.encoder)
  (text,) = encoder.texts([job.settings.negative_prompt])
  # NumPy hides what the disk says, so the bytes are written here.
  file = io.BytesIO()
  np.save(file, record_files.pack(text))
  path.write_bytes(file.getvalue())
  return {
    "clips": 0,
    "cut": encoder.num_cut([job.settings.negative_prompt]),
    "inputs": 0,
    "max_tokens": len(text),
  }


def _make_records(
  job: Job, path: pathlib.Path, on_item: Callable[[], object]
) -> dict[str, Any]:
  """Writes the records of a job; returns its counts."""
  encoder = encode.load(job.settings.encoder)
  ends = _looked_at(job)
  wanted = [number for number in range(len(job.items)) if number not in ends]
  # All texts come first, so that the text encoder and the VAE take turns only
  # once; nobody reads those of inputs that have no clip.
  captions = [job.items[number].caption for number in wanted]
  texts = dict(zip(wanted, encoder.texts(captions), strict=True))
  excluded = collections.Counter[str]()
  changed = collections.Counter[str]()
  quarantined: list[dict[str, Any]] = []
  feature = records.features(job.settings.sizes)

  def serialised() -> Iterator[bytes]:
    for event in _one_ahead(_events(job, ends)):
      item = job.items[event.number]
      if event.frames is not None:
        latents = encoder.latents(event.frames)
        yield feature.serialize_example(
          records.clip_example(
            item, texts[event.number], latents, event.facts, start=event.start
          )
        )
        continue
      changed.update(event.changed)
      if event.excluded:
        excluded[event.excluded] += 1
      elif event.unusable:
        about = dict(index=item.index, video=item.video, reason=event.unusable)
        quarantined.append(about)
      elif job.settings.clip is None:
        example = records.prompt_example(item, texts[event.number])
        yield feature.serialize_example(example)
      on_item()

  num_records = record_files.write(path, serialised())
  return {
    "clips": num_records,
    "cut": encoder.num_cut(captions),
    "changed": dict(sorted(changed.items())),
    "excluded": dict(sorted(excluded.items())),
    "inputs": len(job.items),
    "max_tokens": max(map(len, texts.values()), default=0),
    "quarantined": quarantined,
  }


class _Event(NamedTuple):
  """A clip, or the end of an input with the reason why it has no clip.

  Attributes:
    number: Number of the input within the job.
    frames: Frames of a clip; None at the end of an input.
    facts: What the file says about itself.
    start: First second of the clip.
    excluded: Rule that the input fails, or empty.
    unusable: Reason why the file cannot be read, or empty.
    changed: At the end of an input, kinds of change that its frames needed.
  """

  number: int
  frames: np.ndarray | None = None
  facts: clips.Facts | None = None
  start: float = 0.0
  excluded: str = ""
  unusable: str = ""
  changed: tuple[str, ...] = ()


def _one_ahead(events: Iterator[_Event]) -> Iterator[_Event]:
  """Yields clips, and decodes the next one while this one is encoded."""
  # Decoding runs outside of Python's lock, so one thread is enough.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    future = pool.submit(next, events, None)
    while (event := future.result()) is not None:
      future = pool.submit(next, events, None)
      yield event


def _looked_at(job: Job) -> dict[int, _Event]:
  """Opens every file of a job; returns the ends of those without clips."""
  if job.settings.clip is None:
    return {}
  if not pathlib.Path(job.videos).is_dir():
    # A disk that is gone must not make all of its videos unreadable.
    raise ValueError(
      f"videos={job.videos!r} is no folder any more; bring it back and start"
      " the same command again."
    )
  ends: dict[int, _Event] = {}
  for index, item in enumerate(job.items):
    try:
      with _opened(job, item) as video:
        rule = job.settings.filters.failure(_known(item, video.facts()))
    except files.Unusable as error:
      ends[index] = _Event(index, unusable=str(error))
    else:
      if rule is not None:
        ends[index] = _Event(index, excluded=rule)
  return ends


def _events(job: Job, ends: dict[int, _Event]) -> Iterator[_Event]:
  """Yields all clips of a job, and the end of every input.

  Args:
    job: The job.
    ends: Ends of the inputs that have no clips, as is known already.
  """
  for index, item in enumerate(job.items):
    end = ends.get(index, _Event(index))
    num_clips = 0
    if job.settings.clip is not None and index not in ends:
      try:
        for event in _clips(job, index, item):
          num_clips += event.frames is not None
          if event.frames is None:
            end = event
          else:
            yield event
      except files.Unusable as error:
        end = _Event(index, unusable=str(error))
        if num_clips:  # Clips before the damage are good.
          end = _Event(index, changed=("damage",))
    yield end


def _opened(
  job: Job, item: table.Item
) -> contextlib.AbstractContextManager[clips.Video]:
  return clips.open_video(pathlib.Path(job.videos) / item.video)


def _known(item: table.Item, facts: clips.Facts) -> dict[str, Any]:
  """Returns what the rules are about: the file, or its segment."""
  known = facts._asdict()
  # The rules about length are about the segment, where there is one.
  if item.start is not None and item.seconds is not None:
    known["seconds"] = item.seconds
  return known


def _clips(job: Job, index: int, item: table.Item) -> Iterator[_Event]:
  """Yields the clips of one input, and its end."""
  shape = job.settings.clip
  assert shape is not None
  length = shape.num_frames / shape.fps
  start = item.start or 0.0
  with _opened(job, item) as video:
    facts = video.facts()
    cut = video.clips(
      shape,
      start=start,
      seconds=None if item.start is None else item.seconds,
      max_clips=job.settings.max_clips,
    )
    num_clips = 0
    for frames in cut:
      yield _Event(index, frames, facts, start + num_clips * length)
      num_clips += 1
    if num_clips:
      yield _Event(index, changed=video.changes.kinds)
    else:
      yield _Event(index, excluded=TOO_SHORT)
