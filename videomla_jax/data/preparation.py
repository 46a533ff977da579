"""Makes a data set of clips: plans it, makes shards, puts them together.

  plan -> run here or through Apache Beam -> finish

Until it is finished a data set lives in OUTPUT/video_latents/1.0.0.incomplete
beside its plan, so that the same command goes on after any interruption. The
finished folder, see `dataset`, appears by one rename.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import pathlib
import shutil
from typing import Any

import tensorflow_datasets as tfds

from videomla_jax.data import dataset
from videomla_jax.data import dataset_check
from videomla_jax.data import locks
from videomla_jax.data import plans
from videomla_jax.data import record_files
from videomla_jax.data import records
from videomla_jax.data import sealed_json
from videomla_jax.data import shards
from videomla_jax.storage import atomic

_MAX_REASONS = 50  # in the report; quarantine.jsonl has all

# What each shard counted, see `shards.read_counts`.
type Counts = dict[shards.Job, dict[str, Any]]


@contextlib.contextmanager
def alone(plan: plans.Plan) -> Iterator[None]:
  """Makes sure that no other process works on the same data set.

  Args:
    plan: The plan.

  Raises:
    ValueError: If another process does, or has begun something else there.
  """
  plan.folder.parent.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(locks.alone(plan.work, wait=False))
    except BlockingIOError as error:
      raise ValueError(
        f"output: another process is making {str(plan.folder)!r}; wait for it,"
        " or give another folder."
      ) from error
    # It may have finished or begun something since the plan was made.
    plans.require_same(plan)
    yield


def is_finished(plan: plans.Plan) -> bool:
  """Says whether the data set is there; its folder appears when complete."""
  return plan.folder.is_dir()


def run(
  plan: plans.Plan, on_item: Callable[[int], object] = lambda n: None
) -> None:
  """Makes all missing shards in this process.

  Args:
    plan: The plan.
    on_item: Called with the number of inputs that were dealt with since then.
  """
  begin(plan)
  for job in plan.jobs:
    if job.is_done:
      on_item(len(job.items))
    else:
      shards.run(job, lambda: on_item(1))


def run_beam(plan: plans.Plan, options: Sequence[str]) -> None:
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
  begin(plan)
  # Beam may run a job twice or on two workers: both write the same bytes, and
  # the last rename wins.
  jobs = [job for job in plan.jobs if not job.is_done]
  flags = pipeline_options.PipelineOptions(list(options))
  # Without `Reshuffle` a runner may fuse the steps, and one worker would make
  # all shards.
  with beam.Pipeline(options=flags) as pipeline:
    _ = pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.Map(shards.run)


def finish(plan: plans.Plan) -> dict[str, Any]:
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
    atomic.write_text(
      plan.work / dataset.QUARANTINE_FILE, _quarantine(plan, counts)
    )
    raise ValueError(
      f"none of {report['inputs']} inputs is left: excluded"
      f" {report['excluded']}, quarantined {report['quarantined']}; relax"
      f" config.filters, or see {str(plan.work / dataset.QUARANTINE_FILE)!r}."
    )
  # Everything is put together beside the shards and appears by one rename.
  with atomic.replacing_folder(plan.folder) as staged:
    _put_shards(plan, counts, staged)
    text = _quarantine(plan, counts)
    (staged / dataset.QUARANTINE_FILE).write_text(text)
    text = json.dumps(report, indent=1) + "\n"
    (staged / dataset.REPORT_FILE).write_text(text)
    text = dataset_check.digests(staged)
    (staged / dataset.DIGESTS_FILE).write_text(text)
  # From here on the data set is there, so what is left of the work may stay if
  # it cannot be removed.
  shutil.rmtree(plan.work, ignore_errors=True)
  return report


def begin(plan: plans.Plan) -> None:
  """Makes the folder of the unfinished data set and says what it will be.

  Args:
    plan: The plan.
  """
  plan.work.mkdir(parents=True, exist_ok=True)
  about = dict(identity=plan.identity)
  sealed_json.write(plan.work / shards.PLAN_FILE, about)


def _report(
  plan: plans.Plan, counts: Counts, clips: collections.Counter[str]
) -> dict[str, Any]:
  """Returns what became of every input.

  The numbers add up: used + excluded + quarantined = inputs.
  """
  excluded = collections.Counter(plan.excluded)
  changed = collections.Counter[str]()
  for count in counts.values():
    excluded.update(count.get("excluded", {}))
    changed.update(count.get("changed", {}))
  reasons = collections.Counter(
    about["reason"] for about in _quarantined(plan, counts)
  )
  quarantined = reasons.total()
  inputs = plan.num_items + sum(plan.excluded.values()) + len(plan.set_aside)
  sizes = plan.settings.sizes
  return {
    "identity": plan.identity,
    "inputs": inputs,
    "used": inputs - excluded.total() - quarantined,
    "excluded": dict(sorted(excluded.items())),
    "quarantined": quarantined,
    "reasons": dict(reasons.most_common(_MAX_REASONS)),
    "cut": sum(count.get("cut", 0) for count in counts.values()),
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


def _put_shards(plan: plans.Plan, counts: Counts, staged: pathlib.Path) -> None:
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


def _quarantined(plan: plans.Plan, counts: Counts) -> list[dict[str, Any]]:
  """Returns index, name and reason of every input that could not be read."""
  listed = [dataclasses.asdict(about) for about in plan.set_aside]
  found = [x for count in counts.values() for x in count.get("quarantined", ())]
  return sorted(listed + found, key=lambda about: about["index"])


def _quarantine(plan: plans.Plan, counts: Counts) -> str:
  """Returns a line of JSON for every input that could not be read."""
  about = _quarantined(plan, counts)
  return "".join(json.dumps(x, sort_keys=True) + "\n" for x in about)
