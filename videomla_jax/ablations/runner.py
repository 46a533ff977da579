"""Runs what the record of an ablation lacks, row by row."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from videomla_jax.ablations import outcomes
from videomla_jax.ablations import plan
from videomla_jax.ablations import real_clips
from videomla_jax.ablations import results as results_lib
from videomla_jax.ablations import starts
from videomla_jax.ablations import trainer as trainer_lib
from videomla_jax.measuring import record
from videomla_jax.small_world import judge as judge_lib
from videomla_jax.small_world import judge_network
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import prompts as prompts_lib
from videomla_jax.training import inputs
from videomla_jax.training import optimiser
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage as stage_lib
from videomla_jax.training.stages import table

_STAGE = "teacher_forcing"
# Groups of a training config that decide what comes out.
_GROUPS = ("model", "window", "diffusion", "optim")
_DATA = ("num_frames", "batch_size", "prompt_dropout", "word_dropout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """What all rows of a command have in common.

  Attributes:
    stages: Config of each stage of training.
    dense: Dense bidirectional model that models are converted from.
    latent: Trained model of stage 1 that is rolled out.
    student: Trained student that is rolled out.
    seeds: Seeds of every row, from 0.
    together: Most models of one program.
    dispatch: Steps of one call of it.
    held_out: Held-out batches of a loss.
    videos_per_prompt: Videos that are judged of each held-out prompt; 0 for
      none.
    num_frames: Frames of each of these videos.
    judge: File of the judge, which is trained if it is missing.
    films: Files of real films, for the settings that are trained on them.
  """

  stages: Mapping[str, ml_collections.ConfigDict]
  dense: str
  latent: str
  student: str
  seeds: int
  together: int
  dispatch: int
  held_out: int
  videos_per_prompt: int
  num_frames: int
  judge: str
  films: tuple[str, ...]

  def training(
    self, setting: plan.Setting
  ) -> tuple[stage_lib.Stage, settings_lib.Training]:
    """Returns the stage of a setting, and the setting's config.

    Args:
      setting: The setting.

    Raises:
      ValueError: If the stage cannot train it.
    """
    config = self.stages[_STAGE].copy_and_resolve_references().unlock()
    for name, value in setting.changes.items():
      group, _, field = name.partition(".")
      config[group][field] = value
    stage, settings = table.read(config)
    stage.check(settings)
    optimiser.check(settings.optim)
    return stage, settings

  def recipe(self, row: plan.Setting | plan.Rollout) -> results_lib.Recipe:
    """Returns everything that decides about the numbers of a row.

    Args:
      row: A row.
    """
    values: dict[str, Any] = dict(
      videos_per_prompt=self.videos_per_prompt, num_frames=self.num_frames
    )
    if isinstance(row, plan.Rollout):
      values |= dataclasses.asdict(row) | {"checkpoint": self.checkpoint(row)}
    else:
      stage, settings = self.training(row)
      values |= dict(
        stage=stage.title,
        start=row.start,
        dense=self.dense if row.start != "scratch" else "",
        forced_rank=row.forced_rank,
        held_out=self.held_out,
      )
      for group in _GROUPS:
        for name, x in dataclasses.asdict(getattr(settings, group)).items():
          values[f"{group}.{name}"] = x
      for name in _DATA:
        values[f"data.{name}"] = getattr(settings.data, name)
      if row.films:
        values["films"] = self.film_names
    # As a record gives it back.
    return json.loads(json.dumps(values))

  def checkpoint(self, row: plan.Rollout) -> str:
    """Returns the model that a row rolls out.

    Args:
      row: How to roll out.
    """
    return {"latent": self.latent, "student": self.student}[row.model]

  @property
  def film_names(self) -> list[str]:
    """Names of the films, without their folders."""
    return [pathlib.Path(path).name for path in self.films]

  @property
  def prompts(self) -> list[prompts_lib.Prompt]:
    """Prompts of all videos; training showed none of them."""
    return [*prompts_lib.held_out_prompts()] * self.videos_per_prompt


class Piece(NamedTuple):
  """Rows and seeds that are worked on at once.

  Attributes:
    rows: A row for each seed.
    seeds: Seeds of the rows.
  """

  rows: tuple[plan.Setting | plan.Rollout, ...]
  seeds: tuple[int, ...]

  @property
  def names(self) -> list[str]:
    """Names of the rows, each once."""
    return [*dict.fromkeys(row.name for row in self.rows)]


@functools.lru_cache(1)
def _judge(path: str) -> judge_network.Judge:
  return judge_lib.load_or_train_judge(path)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runner:
  """Rows, their budget, and the record that they go into.

  Attributes:
    budget: What all rows have in common.
    results: The record.
    rows: The rows that are wanted.
  """

  budget: Budget
  results: results_lib.Results
  rows: tuple[plan.Setting | plan.Rollout, ...]

  def recipes(self) -> dict[results_lib.Key, results_lib.Recipe]:
    """Returns what is asked for, by row and seed.

    Raises:
      ValueError: If a row cannot be trained.
    """
    return {
      (row.name, seed): recipe
      for row in self.rows
      for recipe in [self.budget.recipe(row)]
      for seed in range(self.budget.seeds)
    }

  def pieces(self) -> Iterator[Piece]:
    """Yields everything that is asked for, row after row.

    Settings that one program can train are one piece, if they are not too many
    for it; the seeds of a rollout are one, too.
    """
    kind = lambda row: (
      row.program if isinstance(row, plan.Setting) else row.name
    )
    groups: dict[Any, list[plan.Setting | plan.Rollout]] = {}
    for row in self.rows:
      groups.setdefault(kind(row), []).append(row)
    for group in groups.values():
      members = itertools.product(group, range(self.budget.seeds))
      for some in itertools.batched(members, self.budget.together):
        rows, seeds = zip(*some, strict=True)
        yield Piece(rows, seeds)

  def run(self, *, minutes: float) -> list[str]:
    """Works on every piece that the record lacks and that nobody works on.

    Args:
      minutes: Minutes after which no further piece is started.

    Returns:
      Names of the rows that are not complete.

    Raises:
      ValueError: If a row cannot be trained, or the record is of other rows.
    """
    recipes, started = self.recipes(), time.monotonic()
    self.results.known(recipes)
    for piece in self.pieces():
      if time.monotonic() - started > 60 * minutes:
        break
      with self.results.claimed(piece.names) as mine:
        # Another process may have finished it since the last look.
        known = self.results.known(recipes)
        members = [
          (row, seed)
          for row, seed in zip(*piece, strict=True)
          if (row.name, seed) not in known
        ]
        if not mine or not members:
          continue
        self.results.add(self._lines(Piece(*map(tuple, zip(*members)))))
    known = self.results.known(recipes)
    missing = [name for name, seed in recipes if (name, seed) not in known]
    return [*dict.fromkeys(missing)]

  def _lines(self, piece: Piece) -> list[record.Line]:
    """Trains or rolls out a piece, and returns a line for each row and seed."""
    started = time.monotonic()
    if isinstance(piece.rows[0], plan.Rollout):
      measured = [*map(self._rolled, *piece)]
    else:
      measured = self._trained(piece)
    seconds = (time.monotonic() - started) / len(measured)
    return [
      dict(
        setting=row.name,
        seed=seed,
        **values,
        seconds=round(seconds, 1),  # with compilation, shared by all
        together=len(measured),
        recipe=self.budget.recipe(row),
      )
      for row, seed, values in zip(*piece, measured, strict=True)
    ]

  def _trained(self, piece: Piece) -> list[dict[str, Any]]:
    """Trains the models of a piece, and measures each."""
    rows = [row for row in piece.rows if isinstance(row, plan.Setting)]
    stage, settings = self.budget.training(rows[0])
    trainer = trainer_lib.Trainer(
      stage=stage,
      settings=settings,
      forced=rows[0].forced_rank > 0,
      dispatch=self.budget.dispatch,
    )
    films = None
    if rows[0].films:
      frames = settings.data.num_frames
      films = real_clips.read(self.budget.films, num_frames=frames)
    models = [
      starts.make(
        row.start,
        dataclasses.replace(settings, seed=seed),
        dense=self.budget.dense,
      )
      for row, seed in zip(rows, piece.seeds, strict=True)
    ]
    before = [*map(outcomes.ranks, models)]
    done = trainer(
      models,
      piece.seeds,
      [row.forced_rank for row in rows],
      name=", ".join(piece.names),
      films=films,
    )
    lines = []
    for row, seed, old, new in zip(
      rows, piece.seeds, before, done, strict=True
    ):
      about = self._about(row, settings, new.model, films)
      about |= {f"{k}_at_start": old[k] for k in ("rank", "rank_entropy")}
      about |= outcomes.ranks(new.model)
      about |= dict(training_loss=round(new.loss, 6), skipped=new.skipped)
      loss = outcomes.held_out_loss(
        new.model, films, trainer=trainer, batches=self.budget.held_out
      )
      about["loss"] = round(float(loss), 6)
      if films is None:  # The judge knows digits alone.
        sampler = outcomes.sampler_of_training(settings)
        about |= self._judged(
          new.model, seed, sampler=sampler, window=settings.window
        )
      lines.append(about)
    return lines

  def _about(
    self,
    row: plan.Setting,
    settings: settings_lib.Training,
    model: model_lib.VideoModel,
    films: real_clips.Films | None,
  ) -> dict[str, Any]:
    """Says in words what a row of the table must say."""
    network = inputs.dit(model).config
    latent = network.attention.kind == "latent"
    return dict(
      start=starts.described(row.start, self.budget.dense),
      attention=network.attention.kind,
      d_c=network.attention.d_c if latent else 0,
      d_rope=network.attention.d_rope if latent else 0,
      width=network.width,
      layers=network.num_layers,
      parameters=sum(x.size for x in jax.tree.leaves(model)),
      cached_scalars=network.attention.cached_scalars,
      training_steps=settings.optim.steps,
      batch=settings.data.batch_size,
      frames=settings.data.num_frames,
      data="moving digits" if films is None else self._described(films),
    )

  def _described(self, films: real_clips.Films) -> str:
    """Says how much film there is, for the row of a table."""
    names = ", ".join(self.budget.film_names)
    return f"{len(films.train)} of {names} ({len(films.test)} held out)"

  def _rolled(
    self, row: plan.Setting | plan.Rollout, seed: int
  ) -> dict[str, Any]:
    """Rolls a trained model out, and measures its videos."""
    assert isinstance(row, plan.Rollout)
    path = self.budget.checkpoint(row)
    model = model_lib.load(path)
    window = dataclasses.replace(model.config.window, **row.window)
    sampler = outcomes.sampler_of(row, model)
    passes = len(sampler.sigmas) + (sampler.commit == "clean")
    return dict(
      start=f"{path}, one training seed; the seeds are of the noise",
      passes=passes,
      cache_dtype=row.cache_dtype or "float32",
    ) | self._judged(
      model,
      seed,
      sampler=sampler,
      window=window,
      cache_dtype=row.cache_dtype,
    )

  def _judged(
    self, model: model_lib.VideoModel, seed: int, **how: Any
  ) -> outcomes.Measured:
    """Generates videos and measures them, if any are asked for."""
    prompts = self.budget.prompts
    if not prompts:
      return {}
    videos = outcomes.roll_out(
      model, prompts, seed=seed, num_frames=self.budget.num_frames, **how
    )
    # What diverged has no pixels, and the judge takes none for it.
    videos = np.nan_to_num(videos)
    return outcomes.judged(videos, prompts, _judge(self.budget.judge))


def select(names: Sequence[str]) -> tuple[plan.Setting | plan.Rollout, ...]:
  """Returns rows by their names.

  Args:
    names: Names of settings and rollouts.
  """
  return tuple(
    plan.SETTINGS[name] if name in plan.SETTINGS else plan.ROLLOUTS[name]
    for name in names
  )
