"""Runs what the record of an ablation lacks, row by row."""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from videomla_jax.ablations import budget as budget_lib
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
from videomla_jax.training import inputs
from videomla_jax.training.stages import stage as stage_lib


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

  budget: budget_lib.Budget
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
    stages = self.budget.training(rows[0])
    films = None
    if rows[0].films:
      frames = stages[0].settings.data.num_frames
      films = real_clips.read(self.budget.films, num_frames=frames)
    models = [
      self._start(row, seed)
      for row, seed in zip(rows, piece.seeds, strict=True)
    ]
    lines = [
      {f"{k}_at_start": old[k] for k in ("rank", "rank_entropy")}
      for old in map(outcomes.ranks, models)
    ]
    for number, stage in enumerate(stages):
      trainer = trainer_lib.Trainer(
        stage=stage.stage,
        settings=stage.settings,
        forced=rows[0].forced_rank > 0,
        dispatch=self.budget.dispatch,
      )
      done = trainer(
        [self._networks(stage, model) for model in models],
        piece.seeds,
        [row.forced_rank for row in rows],
        name=", ".join(piece.names)
        + (f": {stage.stage.title}" if len(stages) > 1 else ""),
        films=films,
      )
      models = [one.model for one in done]
      for line, one in zip(lines, done, strict=True):
        line["skipped"] = line.get("skipped", 0) + one.skipped
        if number == 0:  # Losses of two stages are of two tasks.
          line["training_loss"] = round(one.loss, 6)
          line["loss"] = self._held_out(trainer, one.model, films)
    for row, seed, line, model in zip(
      rows, piece.seeds, lines, models, strict=True
    ):
      line |= self._about(row, stages, model, films)
      line |= outcomes.ranks(model)
      if films is None:  # The judge knows digits alone.
        line |= self._judged(
          model,
          seed,
          sampler=outcomes.sampler_of_training(*stages[-1]),
          window=stages[-1].settings.window,
        )
    return lines

  def _start(self, row: plan.Setting, seed: int) -> model_lib.VideoModel:
    """Returns what the first stage of a row begins with."""
    settings = self.budget.training(row)[0].settings
    settings = dataclasses.replace(settings, seed=seed)
    return starts.make(row.start, settings, dense=self.budget.dense)

  def _networks(
    self, stage: budget_lib.Stage, model: model_lib.VideoModel
  ) -> stage_lib.Networks:
    """Returns the networks of a stage, which goes on with a model."""
    networks: stage_lib.Networks = {
      role: self._score if role in stage.stage.scores else model
      for role in stage.stage.starts_from
    }
    return networks | {"model": starts.prepared(model, stage.settings)}

  @functools.cached_property
  def _score(self) -> model_lib.VideoModel:
    """The bidirectional model that scores what a student makes."""
    return starts.scanned(model_lib.load(self.budget.dense))

  def _held_out(
    self,
    trainer: trainer_lib.Trainer,
    model: model_lib.VideoModel,
    films: real_clips.Films | None,
  ) -> float:
    """Returns the loss on clips that training did not show."""
    loss = outcomes.held_out_loss(
      model, films, trainer=trainer, batches=self.budget.held_out
    )
    return round(float(loss), 6)

  def _about(
    self,
    row: plan.Setting,
    stages: Sequence[budget_lib.Stage],
    model: model_lib.VideoModel,
    films: real_clips.Films | None,
  ) -> dict[str, Any]:
    """Says in words what a row of the table must say."""
    network, settings = inputs.dit(model).config, stages[0].settings
    latent = network.attention.kind == "latent"
    later = {x.stage.title: x.settings.optim.steps for x in stages[1:]}
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
      **(dict(later_steps=later) if later else {}),
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
