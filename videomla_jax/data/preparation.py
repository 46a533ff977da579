"""Makes a data set of clips: plans it, makes shards, puts them together.

  plan -> run here or through Apache Beam -> finish

Until it is finished a data set lives in OUTPUT/video_latents/1.0.0.incomplete
beside its plan, so that the same command goes on after any interruption. The
finished folder, see `dataset`, appears by one rename.
"""

import collections
from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import tensorflow_datasets as tfds

from videomla_jax.data import batching
from videomla_jax.data import dataset
from videomla_jax.data import record_files
from videomla_jax.data import records
from videomla_jax.data import shards
from videomla_jax.data import table
from videomla_jax.storage import atomic

_PLAN_FILE = "plan.json"

# What each shard counted, see `shards.read_counts`.
type Counts = dict[shards.Job, dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Says which shards make up a data set.

  Attributes:
    folder: Folder that the finished data set will have.
    jobs: One job per shard, and one for the negative prompt.
    excluded: Number of inputs that the table's facts ruled out, by rule.
    settings: How inputs are treated.
    identity: Digest of everything that the data depend on.
  """

  folder: pathlib.Path
  jobs: tuple[shards.Job, ...]
  excluded: dict[str, int]
  settings: shards.Settings
  identity: str

  @property
  def work(self) -> pathlib.Path:
    """Folder of the data set until it is finished."""
    return self.folder.with_name(self.folder.name + ".incomplete")

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

  Raises:
    ValueError: If sizes are out of range, or the folder holds another data set
      or another unfinished one.
  """
  if shard_size < 1:
    raise ValueError(f"shard_size={shard_size} must be positive; use 64.")
  batching.check_chance("test_fraction", test_fraction)
  folder = pathlib.Path(output).absolute() / dataset.NAME / dataset.VERSION
  work = str(folder.with_name(folder.name + ".incomplete"))
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
    settings=settings,
    identity=_identity(jobs, excluded, settings),
  )
  # This comes before any work: shards of two plans must never share a folder.
  _require_same(planned)
  return planned


def is_finished(plan: Plan) -> bool:
  """Says whether the data set is there; its folder appears when complete."""
  return plan.folder.is_dir()


def run(plan: Plan, on_item: Callable[[int], object] = lambda n: None) -> None:
  """Makes all missing shards in this process.

  Args:
    plan: The plan.
    on_item: Called with the number of inputs that were dealt with since then.
  """
  _begin(plan)
  for job in plan.jobs:
    if job.is_done:
      on_item(len(job.items))
    else:
      shards.run(job, lambda: on_item(1))


def run_beam(plan: Plan, options: Sequence[str]) -> None:
  """Makes all missing shards through Apache Beam, on any of its runners.

  Args:
    plan: The plan; workers must see the same folders.
    options: Options of Beam, such as "--runner=FlinkRunner".

  Raises:
    ValueError: If Beam is not installed.
  """
  try:
    import apache_beam as beam
    from apache_beam.options import pipeline_options
  except ImportError as error:
    raise ValueError(
      "runner='beam' needs Apache Beam; install videomla-jax[beam], or use"
      " runner='local'."
    ) from error
  _begin(plan)
  # Beam may run a job twice or on two workers: both write the same bytes, and
  # the last rename wins.
  jobs = [job for job in plan.jobs if not job.is_done]
  flags = pipeline_options.PipelineOptions(list(options))
  # Without `Reshuffle` a runner may fuse the steps, and one worker would make
  # all shards.
  with beam.Pipeline(options=flags) as pipeline:
    _ = pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.Map(shards.run)


def finish(plan: Plan) -> dict[str, Any]:
  """Puts the shards together and returns the report.

  Args:
    plan: The plan, all of whose shards are finished.

  Raises:
    ValueError: If shards are missing or damaged, or nothing is in them.
  """
  counts = {job: shards.read_counts(job) for job in plan.jobs}
  clips = collections.Counter[str]()
  for job, count in counts.items():
    clips[job.split] += count["clips"]
  report = _report(plan, counts, clips)
  # The reasons are kept even if there is no data set to keep them in.
  if not clips.total():
    atomic.write_text(plan.work / dataset.QUARANTINE_FILE, _quarantine(counts))
    raise ValueError(
      f"none of {report['inputs']} inputs is left: excluded"
      f" {report['excluded']}, quarantined {report['quarantined']}; relax"
      f" config.filters, or see {str(plan.work / dataset.QUARANTINE_FILE)!r}."
    )
  # Everything is put together beside the shards and appears by one rename.
  staged = plan.work / "finished"
  shutil.rmtree(staged, ignore_errors=True)
  staged.mkdir()
  _put_shards(plan, counts, staged)
  (staged / dataset.QUARANTINE_FILE).write_text(_quarantine(counts))
  (staged / dataset.REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n")
  # From here on the data set is there, so what is left of the work may stay if
  # it cannot be removed.
  os.replace(staged, plan.folder)
  shutil.rmtree(plan.work, ignore_errors=True)
  return report


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
  settings: shards.Settings,
) -> str:
  """Returns a digest of inputs, weights and settings, not of their paths."""
  # Folders may be moved or copied between two runs of the same command.
  about = dataclasses.asdict(settings)
  about["encoder"] = settings.encoder.identity()
  inputs = [
    [job.split, [dataclasses.astuple(item) for item in job.items]]
    for job in jobs
  ]
  text = json.dumps([about, excluded, inputs], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _require_same(plan: Plan) -> None:
  """Refuses a folder that holds, or began to hold, another data set."""
  for path, what in (
    (plan.folder / dataset.REPORT_FILE, "another data set"),
    (plan.work / _PLAN_FILE, "another unfinished data set"),
  ):
    if not path.exists():
      continue
    if json.loads(path.read_text())["identity"] != plan.identity:
      raise ValueError(
        f"output: {str(path.parent)!r} is {what} (other inputs, encoders or"
        " settings); give another folder, or delete that one."
      )


def _begin(plan: Plan) -> None:
  """Makes the folder of the unfinished data set and says what it will be."""
  plan.work.mkdir(parents=True, exist_ok=True)
  atomic.write_text(
    plan.work / _PLAN_FILE, json.dumps(dict(identity=plan.identity)) + "\n"
  )


def _report(
  plan: Plan, counts: Counts, clips: collections.Counter[str]
) -> dict[str, Any]:
  """Returns what became of every input.

  The numbers add up: used + excluded + quarantined = inputs.
  """
  excluded = collections.Counter(plan.excluded)
  changed = collections.Counter[str]()
  quarantined = 0
  for count in counts.values():
    excluded.update(count.get("excluded", {}))
    changed.update(count.get("changed", {}))
    quarantined += len(count.get("quarantined", ()))
  inputs = plan.num_items + sum(plan.excluded.values())
  sizes = plan.settings.sizes
  return {
    "identity": plan.identity,
    "inputs": inputs,
    "used": inputs - excluded.total() - quarantined,
    "excluded": dict(sorted(excluded.items())),
    "quarantined": quarantined,
    "changed": dict(sorted(changed.items())),
    "clips": {split: clips[split] for split in dataset.SPLITS},
    "latent_shape": sizes.latents,
    "text_width": sizes.text_width,
    "max_tokens": max(count["max_tokens"] for count in counts.values()),
    "settings": dataclasses.asdict(plan.settings),
    "shards": {
      name: dict(bytes=counts[job]["bytes"], sha256=counts[job]["sha256"])
      for job, name in _final_names(counts).items()
    },
  }


def _final_names(counts: Counts) -> dict[shards.Job, str]:
  """Returns TFDS's names of the shards that hold something."""
  names = {}
  for split in dataset.SPLITS:
    full = [j for j, c in counts.items() if j.split == split and c["clips"]]
    for index, job in enumerate(full):
      names[job] = record_files.file_name(
        split, index, len(full), dataset=dataset.NAME
      )
  # TFDS wants no empty shards, so numbers run over those that hold something.
  (null_text,) = (job for job in counts if job.split == shards.NULL_TEXT)
  return names | {null_text: dataset.NULL_TEXT_FILE}


def _put_shards(plan: Plan, counts: Counts, staged: pathlib.Path) -> None:
  """Puts shards and what TFDS wants to know of them into a folder."""
  names = _final_names(counts)
  for job, name in names.items():
    record_files.link_or_copy(job.data, staged / name)
  template = tfds.core.ShardedFileTemplate(
    data_dir=staged, dataset_name=dataset.NAME, filetype_suffix="array_record"
  )
  infos = []
  for split in dataset.SPLITS:
    jobs = [job for job in names if job.split == split]
    if jobs:
      infos.append(
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[counts[job]["clips"] for job in jobs],
          num_bytes=sum(counts[job]["bytes"] for job in jobs),
          filename_template=template.replace(split=split),
        )
      )
  tfds.folder_dataset.write_metadata(
    data_dir=staged,
    features=records.features(plan.settings.sizes),
    split_infos=infos,
    version=dataset.VERSION,
    filename_template=template,
    check_data=False,  # needs TensorFlow
    description="Latents of video clips and embeddings of their captions.",
  )


def _quarantine(counts: Counts) -> str:
  """Returns a line of JSON for every input that could not be read."""
  lines = [
    json.dumps(about, sort_keys=True)
    for count in counts.values()
    for about in sorted(
      count.get("quarantined", ()), key=lambda about: about["index"]
    )
  ]
  return "".join(line + "\n" for line in lines)
