"""The files of one generation: their names, and what they would replace."""

import json
import pathlib
from typing import NamedTuple

from videomla_jax.generation import job as job_lib
from videomla_jax.generation import video_files
from videomla_jax.storage import ordinary_files
from videomla_jax.storage import output_folder


class Results(NamedTuple):
  """Where the results go.

  Attributes:
    videos: One MP4 per prompt.
    sheet: The contact sheet.
    report: The JSON report, which says what made them.
  """

  videos: list[pathlib.Path]
  sheet: pathlib.Path
  report: pathlib.Path


def check(job: job_lib.Job) -> Results:
  """Names the files of a generation and proves that they can be written.

  Results of the same request are replaced. Those of another one are, too, if
  they have the same names, and a line says so; a seed other than 0 is part of
  the names of videos, so that seeds can be compared.

  Args:
    job: What will be made.

  Raises:
    ValueError: If the folder is not writable, or a file cannot have its name.
  """
  output, prompts = job.request.output, job.request.prompts
  folder = output_folder.check(output.folder)
  results = Results(
    videos=video_files.paths(
      folder, prompts, name=output.name, seeds=job.seeds
    ),
    sheet=folder / f"{output.name}-sheet.png",
    report=folder / f"{output.name}.json",
  )
  for path in (*results.videos, results.sheet, results.report):
    output_folder.check_file(path)
  _tell(job, results)
  return results


def _tell(job: job_lib.Job, results: Results) -> None:
  """Says which results of another request will be replaced."""
  old = [
    path.name for path in (*results.videos, results.sheet) if path.exists()
  ]
  if old and not _is_of(job, results.report):
    print(
      f"replaces {len(old)} files of another request in"
      f" {results.report.parent}, such as {old[0]}; --config.output.name keeps"
      " both.",
      flush=True,
    )


def _is_of(job: job_lib.Job, report: pathlib.Path) -> bool:
  """Says whether a report states the same request."""
  try:
    stated = ordinary_files.read_json(report)
    asked = json.loads(json.dumps(job.described()))
    return all(stated.get(key) == value for key, value in asked.items())
  except (OSError, ValueError, AttributeError, RecursionError):
    return False
