"""Plans a data set: which inputs go to which shard, and what it is made of."""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from videomla_jax.data import batching
from videomla_jax.data import dataset
from videomla_jax.data import disk
from videomla_jax.data import sealed_json
from videomla_jax.data import shards
from videomla_jax.data import table
from videomla_jax.storage import ordinary_files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Says which shards make up a data set.

  Attributes:
    folder: Folder that the finished data set will have.
    jobs: One job per shard, and one for the negative prompt.
    excluded: Number of inputs that the table's facts ruled out, by rule.
    set_aside: Inputs that the list shows to be unusable.
    settings: How inputs are treated.
    identity: Digest of everything that the data depend on.
  """

  folder: pathlib.Path
  jobs: tuple[shards.Job, ...]
  excluded: dict[str, int]
  set_aside: tuple[table.SetAside, ...]
  settings: shards.Settings
  identity: str

  @property
  def work(self) -> pathlib.Path:
    """Folder of the data set until it is finished."""
    return self.folder.with_name(self.folder.name + dataset.UNFINISHED)

  @property
  def num_items(self) -> int:
    """Number of inputs that are looked at."""
    return sum(len(job.items) for job in self.jobs)


def plan_shards(
  items: Sequence[table.Item],
  excluded: dict[str, int],
  *,
  videos: str,
  output: str | os.PathLike[str],
  settings: shards.Settings,
  shard_size: int,
  test_fraction: float | int,
  set_aside: Sequence[table.SetAside] = (),
) -> Plan:
  """Deals inputs out to splits and shards.

  Which split an input goes to depends on its path alone, so more inputs do not
  move those that are there.

  Args:
    items: Inputs that are left after the table's filters.
    excluded: Number of inputs that are not left, by rule.
    videos: Folder that the inputs' paths start from.
    output: Root of TFDS data sets.
    settings: How every input is treated.
    shard_size: Number of inputs of a shard.
    test_fraction: Chance of a video to be held out with all its segments, 0..1.
    set_aside: Inputs that cannot be used, as the list shows.

  Raises:
    ValueError: If sizes are out of range, or the folder holds another data set
      or another unfinished one.
  """
  if shard_size < 1:
    raise ValueError(f"shard_size={shard_size} must be positive; use 64.")
  batching.check_chance("test_fraction", test_fraction)
  disk.check_name(output, field="output")
  folder = pathlib.Path(output).absolute() / dataset.NAME / dataset.VERSION
  work = str(folder.with_name(folder.name + dataset.UNFINISHED))
  dealt: dict[str, list[table.Item]] = {split: [] for split in dataset.SPLITS}
  for item in items:
    dealt[_split_of(item, test_fraction)].append(item)
  # The negative prompt is embedded like a shard, so that it can be resumed.
  common = dict(videos=videos, folder=work, settings=settings)
  jobs = [shards.Job(split=shards.NULL_TEXT, index=0, items=(), **common)]
  for split, part in dealt.items():
    for index, first in enumerate(range(0, len(part), shard_size)):
      inputs = tuple(part[first : first + shard_size])
      jobs.append(shards.Job(split=split, index=index, items=inputs, **common))
  planned = Plan(
    folder=folder,
    jobs=tuple(jobs),
    excluded=dict(excluded),
    set_aside=tuple(set_aside),
    settings=settings,
    identity=_identity(jobs, excluded, set_aside, settings),
  )
  # This comes before any work: shards of two plans must never share a folder.
  require_same(planned)
  return planned


def _split_of(item: table.Item, test_fraction: float | int) -> str:
  """Returns the split of an input, told from a digest of its path."""
  # All segments of a video go to one split, since they look alike.
  text = item.video or item.caption
  # Python's own `hash` of a text differs from process to process.
  digest = hashlib.sha256(text.encode()).digest()
  share = int.from_bytes(digest[:8], "big") / 2**64
  return "test" if share < test_fraction else "train"


def _identity(
  jobs: Sequence[shards.Job],
  excluded: dict[str, int],
  set_aside: Sequence[table.SetAside],
  settings: shards.Settings,
) -> str:
  """Returns a digest of inputs, weights and settings, not of their paths."""
  # Folders may be moved or copied between two runs of the same command.
  about = dataclasses.asdict(settings)
  about["encoder"] = settings.encoder.identity()
  digest = hashlib.sha256()
  for text in _identity_text(jobs, [about, excluded], set_aside):
    digest.update(text.encode())
  return digest.hexdigest()


def _identity_text(
  jobs: Sequence[shards.Job],
  first: list[dict[str, Any]],
  set_aside: Sequence[table.SetAside],
) -> Iterator[str]:
  """Yields JSON of all inputs in pieces: a million captions are a gigabyte."""
  yield f"[{', '.join(json.dumps(x, sort_keys=True) for x in first)}, ["
  for number, job in enumerate(jobs):
    items = [dataclasses.astuple(item) for item in job.items]
    yield (", " if number else "") + json.dumps([job.split, items])
  # Without any, the text is that of older versions.
  if set_aside:
    left_out = [dataclasses.astuple(about) for about in set_aside]
    yield ", " + json.dumps(["set aside", left_out])
  yield "]]"


def require_same(plan: Plan) -> None:
  """Refuses a folder that holds, or began to hold, another data set.

  Args:
    plan: What is to be made there.

  Raises:
    ValueError: If so, or what lies there is damaged.
  """
  if os.path.lexists(plan.folder):
    report = dataset.read_report(plan.folder)
    _require_identity(plan, plan.folder, "another data set", report)
  elif os.path.lexists(plan.work / shards.PLAN_FILE):
    begun = _read_plan(plan.work)
    _require_identity(plan, plan.work, "another unfinished data set", begun)


def _require_identity(
  plan: Plan, folder: pathlib.Path, what: str, found: dict[str, Any]
) -> None:
  if found.get("identity") != plan.identity:
    raise ValueError(
      f"output: {str(folder)!r} is {what} (other inputs, encoders or"
      " settings); give another folder, or delete that one."
    )


def _read_plan(work: pathlib.Path) -> dict[str, Any]:
  """Returns what the unfinished data set in a folder is to be."""
  path = work / shards.PLAN_FILE
  try:
    content = ordinary_files.read_bytes(path, limit=ordinary_files.MIB)
    found = ordinary_files.parse_json(content)
    # Older versions wrote the identity alone.
    if found.keys() != {"identity"}:
      found = sealed_json.read(path, limit=ordinary_files.MIB)
  except ordinary_files.BadFile as error:
    raise ValueError(
      f"{str(path)!r} {error}, so nobody knows of what its shards are; delete"
      f" {str(work)!r} and start again."
    ) from error
  return found
