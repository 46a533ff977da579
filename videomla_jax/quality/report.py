"""What both ways of evaluation have in common: measure, judge, tell."""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import pathlib
from typing import Any

from videomla_jax.data import locks
from videomla_jax.generation import request as request_lib
from videomla_jax.quality import folder as folder_lib
from videomla_jax.quality import judge
from videomla_jax.quality import judging as judging_lib
from videomla_jax.quality import measures as measures_lib
from videomla_jax.quality import paper
from videomla_jax.quality import scores
from videomla_jax.runtime import progress_bar
from videomla_jax.storage import atomic
from videomla_jax.storage import output_folder

type Report = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
  """What VBench gave, and what it did not.

  Attributes:
    scores: Score of each dimension, those of earlier results included.
    reasons: Why a dimension has none, by its name.
    version: What judged; None if nothing did.
  """

  scores: Mapping[str, float]
  reasons: Mapping[str, str]
  version: str | None = None


def open_folder(output: request_lib.Output) -> folder_lib.Folder:
  """Returns the folder of a run and proves that reports can be written.

  Args:
    output: Where results go.

  Raises:
    ValueError: If they cannot.
  """
  folder = output_folder.check(output.folder)
  for ending in ("json", "md"):
    output_folder.check_file(folder / f"{output.name}.{ending}")
  output_folder.check(folder / output.name)
  return folder_lib.Folder(folder / output.name)


def package_of(judging: judging_lib.Judging) -> judge.Package | str | None:
  """Looks for VBench before anything is made.

  Args:
    judging: What is to be judged.

  Returns:
    The package, or why it cannot judge; None if nothing is to be judged.

  Raises:
    ValueError: If the package is not where the user says it is.
  """
  if not judging.dimensions:
    return None
  try:
    return judge.find(judging)
  except judge.CannotJudge as error:
    if judging.python or judging.checkout:
      raise ValueError(f"{error}.") from error
    print(f"VBench does not judge: {error}.", flush=True)
    return str(error)


def measure(
  paths: Sequence[pathlib.Path],
  folder: folder_lib.Folder,
  *,
  chunks: measures_lib.Chunks | None,
  drift_seconds: float | int,
  num_frames: int | None = None,
) -> list[Report]:
  """Measures videos; what was measured before is not measured again.

  Args:
    paths: The videos.
    folder: Where numbers are kept.
    chunks: Where their chunks begin; None if they have none.
    drift_seconds: Seconds of beginning and end that are compared.
    num_frames: Frames that each must have; None takes any number.

  Returns:
    What `Folder.measured` gave, in the same order.

  Raises:
    ValueError: If any cannot be measured; numbers of the others are kept.
  """
  found, bad = [], []
  with progress_bar.Progress(len(paths), "measures", unit="video") as progress:
    for path in paths:
      try:
        video = folder.measured(
          path, chunks=chunks, drift_seconds=drift_seconds
        )
        if num_frames is not None and video["frames"] != num_frames:
          raise ValueError(
            f"video {str(path)!r} has {video['frames']} frames, and"
            f" {num_frames} are asked; remove it, and it is made again."
          )
        found.append(video)
      except ValueError as error:
        bad.append(error)
      progress.update(1)
  if bad:
    more = f" {len(bad) - 1} more cannot be used." if len(bad) > 1 else ""
    raise ValueError(f"{bad[0]}{more}") from bad[0]
  return found


def judge_all(
  judging: judging_lib.Judging,
  package: judge.Package | str | None,
  folder: folder_lib.Folder,
  *,
  videos: pathlib.Path,
  measured: Sequence[Report],
  prompts_file: str = "",
  samples: int = 5,
  why_not: str = "",
) -> Judged:
  """Lets VBench judge every dimension, and joins earlier results.

  One process at a time judges in a folder: shares that end together would judge
  everything twice. The others report why they do not.

  Args:
    judging: What to judge.
    package: What `package_of` found.
    folder: Where scores are kept.
    videos: Folder of the videos.
    measured: What was measured of them.
    prompts_file: VBench's own list of prompts, if the videos are of it.
    samples: Videos of each prompt.
    why_not: Why the videos cannot be judged; empty if they can.

  Raises:
    ValueError: If earlier scores are of other videos or another version.
  """
  found, reasons = judging.earlier(), {}
  digests = {x["video"]: x["sha256"] for x in measured}
  with contextlib.ExitStack() as stack:
    if (
      judging.dimensions and not why_not and isinstance(package, judge.Package)
    ):
      why_not = _why_not_alone(folder, stack)
    for dimension in judging.dimensions:
      if why_not or not isinstance(package, judge.Package):
        reasons[dimension] = why_not or str(package)
        continue
      print(f"VBench judges {dimension}", flush=True)
      try:
        score = judge.judge(
          package,
          dimension,
          folder,
          videos=videos,
          digests=digests,
          judging=judging,
          prompts_file=prompts_file,
          samples=samples,
        )
        found.append((f"{folder.judged}/{dimension}.json", {dimension: score}))
      except judge.CannotJudge as error:
        reasons[dimension] = str(error)
        print(f"{dimension} has no score: {error}.", flush=True)
  version = package.version if isinstance(package, judge.Package) else None
  return Judged(scores=scores.join(found), reasons=reasons, version=version)


def _why_not_alone(
  folder: folder_lib.Folder, stack: contextlib.ExitStack
) -> str:
  """Locks the scores of a folder, or says that another process has them."""
  try:
    stack.enter_context(locks.alone(folder.judged, wait=False))
  except BlockingIOError:
    why = (
      f"another process judges the videos of {str(folder.root)!r}; the same"
      " command reports its scores when it has ended"
    )
    print(f"VBench does not judge: {why}.", flush=True)
    return why
  return ""


def write(
  output: request_lib.Output,
  *,
  judging: judging_lib.Judging,
  videos: Sequence[Report],
  judged: Judged,
  **about: object,
) -> Report:
  """Writes the JSON report and its tables, and prints the tables.

  Args:
    output: Where they go.
    judging: Which table of the paper stands beside the scores.
    videos: What is known of each video, its `measures` included.
    judged: What VBench gave.
    **about: What else the report says.

  Returns:
    The JSON report.
  """
  summary = measures_lib.summarise([x["measures"] for x in videos])
  totals = scores.totals(judged.scores)
  tables = [measures_lib.table(summary)] if summary else []
  if judged.scores:
    rows = [f"| {k} | {v:.4f} |" for k, v in judged.scores.items()]
    rows += [f"| **{k}** | {v:.4f} |" for k, v in totals.items()]
    tables.append("\n".join(["| VBench | score |", "|---|---|", *rows]))
    tables.append(paper.table(judging.length, dict(judged.scores) | totals))
  report: Report = dict(
    **about,
    num_videos=len(videos),
    summary=summary,
    judging=dict(
      length=judging.length,
      vbench=judged.version,
      scores=dict(judged.scores),
      totals=totals,
      not_judged=dict(judged.reasons),
      results=[*judging.results],
    ),
    videos=[*videos],
  )
  text = "\n\n".join(tables)
  base = pathlib.Path(output.folder) / output.name
  atomic.write_text(f"{base}.md", text + "\n")
  atomic.write_text(f"{base}.json", json.dumps(report, indent=1) + "\n")
  print(text, f"written: {base}.json, {base}.md", sep="\n", flush=True)
  return report
