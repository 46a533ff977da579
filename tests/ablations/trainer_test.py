"""Models trained side by side are those that are trained alone."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from tests import tiny_project
from tests import tolerances
from videomla_jax.ablations import outcomes
from videomla_jax.ablations import trainer as trainer_lib
from videomla_jax.training import networks
from videomla_jax.training.stages import table


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> trainer_lib.Trainer:
  """Three steps of a tiny model, two of them in a call."""
  tiny_project.shrink(monkeypatch)
  config = tiny_project.config("ablate", "runlocal").stages["teacher_forcing"]
  config.optim.update(steps=3, warmup_steps=1, ema_decay=0.5)
  stage, settings = table.read(config)
  return trainer_lib.Trainer(
    stage=stage, settings=settings, forced=False, dispatch=2
  )


def _models(trainer: trainer_lib.Trainer, seeds: list[int]) -> list[Any]:
  models = [
    networks.build(dataclasses.replace(trainer.settings, seed=s)) for s in seeds
  ]
  return [networks.prepare(m, trainer.settings) for m in models]


def test_models_side_by_side_are_those_of_a_plain_loop(trainer, seed) -> None:
  seeds = [seed % 1000, seed % 1000 + 1]
  models = _models(trainer, seeds)
  found = trainer(models, seeds, [0, 0], name="test")
  # The stage's own step, one model and one step at a time.
  step = jax.jit(trainer.step)
  for model, number, one in zip(models, seeds, found, strict=True):
    state = trainer.stage.init({"model": model}, trainer.settings)
    for _ in range(3):
      state, loss = step(state, jax.random.key(number), 0)
    jax.tree.map(
      lambda a, b: tolerances.assert_close(a, b, "float32_deep"),
      one.model,
      state.ema,
    )
    assert one.loss == pytest.approx(float(loss), rel=1e-4)
    assert one.skipped == 0
  # Other seeds have other weights, clips and noise.
  assert found[0].loss != found[1].loss
  held_out = [
    float(outcomes.held_out_loss(x.model, trainer=trainer, batches=1))
    for x in found
  ]
  assert np.isfinite(held_out).all() and held_out[0] != held_out[1]


def test_a_forced_rank_holds_to_the_end(trainer, seed) -> None:
  trainer = dataclasses.replace(trainer, forced=True)
  (model,) = _models(trainer, [seed % 1000])
  low, free = trainer([model, model], [3, 3], [2, 16], name="test")
  # One program serves all ranks, and 16 is no limit.
  assert outcomes.ranks(low.model)["rank_most"] <= 2
  assert outcomes.ranks(free.model)["rank_least"] > 2
  assert low.loss != free.loss
