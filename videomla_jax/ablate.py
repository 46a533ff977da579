"""Trains the small world's models in many settings, and compares them.

  python -m videomla_jax.ablate --config=configs/ablate.py
  python -m videomla_jax.ablate --config=configs/ablate.py \
    --config.rows="base|d_c" --config.seeds=5

Every row has several training seeds; rows of a table have equal budgets and the
same seeds, so that they are compared pair by pair (docs/ablations.md). Results
are lines of a record. The same command goes on where it was stopped, and the
same command in another terminal, or on another machine with the same disk,
takes the rows that nobody works on.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
import re
from typing import Annotated

import ml_collections

from videomla_jax.ablations import budget as budget_lib
from videomla_jax.ablations import page
from videomla_jax.ablations import plan
from videomla_jax.ablations import results as results_lib
from videomla_jax.ablations import runner as runner_lib
from videomla_jax.measuring import record
from videomla_jax.runtime import cli
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values
from videomla_jax.small_world import world
from videomla_jax.storage import output_folder

_MOST = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
  """What is compared; the fields are the keys of `configs/ablate.py`.

  Attributes:
    stages: Config of each stage of training by its name.
    rows: Regular expression that the name of a row must contain.
    seeds: Seeds of every row, from 0.
    dense: Dense bidirectional model that models are converted from.
    latent: Trained model of stage 1 that is rolled out in several ways.
    student: Trained student that is rolled out in several ways.
    together: Most models that one program trains side by side.
    dispatch: Steps of one call of that program.
    held_out: Held-out batches of a loss.
    videos_per_prompt: Videos that are judged of each held-out prompt; 0 makes
      none, and needs no judge.
    seconds: Length of each of these videos.
    judge: File of the judge, which is trained if it is missing.
    films: Files of real films that the rows named so are trained on; without
      any these rows are left out.
    minutes: Minutes after which no further row is started.
    record: File of the record, which is added to.
  """

  stages: Mapping[str, ml_collections.ConfigDict]
  rows: str
  seeds: Annotated[int, config_values.Range(1, _MOST)]
  dense: config_values.Path
  latent: config_values.Path
  student: config_values.Path
  together: Annotated[int, config_values.Range(1, _MOST)]
  dispatch: Annotated[int, config_values.Range(1, _MOST)]
  held_out: Annotated[int, config_values.Range(1, _MOST)]
  videos_per_prompt: Annotated[int, config_values.Range(0, _MOST)]
  seconds: config_values.Seconds
  judge: config_values.Path
  films: tuple[config_values.Path, ...]
  minutes: Annotated[float, config_values.Range(0.0, 1e6)]
  record: config_values.Path

  def __post_init__(self) -> None:
    record.check_pattern(self.rows)
    if not self.names:
      raise ValueError(
        f"rows={self.rows!r} matches none of the rows, such as "
        f"{plan.BASE.name!r}; leave it empty for all of them."
      )
    # A quarter of a shorter video is too short to tell its motion.
    least = 12 / world.World().fps
    if self.videos_per_prompt and self.seconds < least:
      raise ValueError(
        f"seconds={self.seconds} must be at least {least:g} to be judged; use "
        "that or more, or videos_per_prompt=0."
      )

  @property
  def names(self) -> list[str]:
    """The rows that are asked for."""
    films = any(self.films)
    every = [n for n, x in plan.SETTINGS.items() if films or not x.films]
    if self.videos_per_prompt:  # Of a rollout only videos can be measured.
      every += plan.ROLLOUTS
    return [name for name in every if re.search(self.rows, name)]


def ablate(config: config_reader.Values) -> list[record.Line]:
  """Runs what the record lacks, and prints a line for each row.

  Args:
    config: Values of the keys in `configs/ablate.py`.

  Returns:
    The lines of the record that were asked for.

  Raises:
    ValueError: If a row cannot be trained, or the record is damaged, or of
      other settings or versions.
  """
  request = config_reader.read(Ablation, config)
  path = output_folder.check_file(request.record)
  if request.videos_per_prompt:
    output_folder.check_file(request.judge)
  fields = {
    f.name: getattr(request, f.name)
    for f in dataclasses.fields(budget_lib.Budget)
    if f.name != "num_frames"
  }
  frames = round(request.seconds * world.World().fps)
  runner = runner_lib.Runner(
    budget=budget_lib.Budget(**fields, num_frames=frames),
    results=results_lib.Results(
      path=pathlib.Path(path), session=record.Session.here()
    ),
    rows=runner_lib.select(request.names),
  )
  missing = runner.run(minutes=request.minutes)
  lines = [
    x for x in record.read(path) if results_lib.key_of(x) in runner.recipes()
  ]
  print(page.summary(lines), flush=True)
  print(f"{path}: {len(lines)} lines of these rows", flush=True)
  if missing:
    print(
      f"{len(missing)} rows are not complete; the same command goes on with "
      f"what no other process works on: {', '.join(missing[:3])}...",
      flush=True,
    )
  return lines


if __name__ == "__main__":
  cli.run(ablate)
