"""Models trained side by side are those that are trained alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_project
from tests import tolerances
from videomla_jax.ablations import forced_rank
from videomla_jax.ablations import outcomes
from videomla_jax.ablations import trainer as trainer_lib
from videomla_jax.training import networks
from videomla_jax.training.stages import table


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> trainer_lib.Trainer:
  """Two steps of a tiny model, one in a call, with forced ranks."""
  tiny_project.shrink(monkeypatch)
  config = tiny_project.config("ablate", "runlocal").stages["teacher_forcing"]
  config.data.update(num_frames=3)
  # Adam makes a whole step of the rounding of a gradient that should be zero,
  # unless more is added to its root.
  config.optim.update(steps=2, warmup_steps=0, ema_decay=0.5, eps=1e-2)
  stage, settings = table.read(config)
  return trainer_lib.Trainer(
    stage=stage, settings=settings, forced=True, dispatch=1
  )


def _model(trainer: trainer_lib.Trainer, seed: int) -> Any:
  settings = dataclasses.replace(trainer.settings, seed=seed)
  return networks.prepare(networks.build(settings), settings)


def test_models_side_by_side_are_those_of_a_plain_loop(trainer, seed) -> None:
  seeds, ranks = [seed % 1000, seed % 1000 + 1], [2, 16]
  models = [_model(trainer, s) for s in seeds]
  found = trainer(models, seeds, ranks, name="test")
  # The stage's own step, one model and one step at a time.
  step = jax.jit(trainer.step)
  for model, number, rank, one in zip(models, seeds, ranks, found, strict=True):
    model = forced_rank.project(model, rank)
    state = trainer.stage.init({"model": model}, trainer.settings)
    for _ in range(2):
      state, loss = step(state, jax.random.key(number), jnp.int32(rank))
    text = lambda model: model.text.table[...]
    tolerances.assert_close(text(one.model), text(state.ema), "float32_deep")
    np.testing.assert_allclose(one.loss, loss, rtol=1e-4)
    assert one.skipped == 0
    # A forced rank holds to the end, and 16 is no limit.
    assert (outcomes.ranks(one.model)["rank_most"] <= 2) == (rank == 2)
  # Other seeds have other weights, clips and noise.
  assert found[0].loss != found[1].loss


def test_the_loss_on_held_out_clips_is_the_same_every_time(
  trainer, seed
) -> None:
  model = _model(trainer, seed % 1000)
  first, second = (
    float(outcomes.held_out_loss(model, trainer=trainer, batches=n))
    for n in (2, 2)
  )
  # A young network predicts no velocity at all, and that of a clip in [-1, 1]
  # against noise has a mean square from 1 to 2.
  assert first == second and 1 < first < 2
