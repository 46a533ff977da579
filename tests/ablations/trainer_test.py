"""Models that are trained side by side do not know of each other."""

import dataclasses
from typing import Any

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


def test_a_model_does_not_depend_on_those_beside_it(trainer, seed) -> None:
  seeds, ranks = [seed % 1000, seed % 1000 + 1], [2, 16]
  models = [_model(trainer, s) for s in seeds]
  alone = [{"model": m} for m in models]
  found = trainer(alone, seeds, ranks, name="test")
  for one, rank in zip(found, ranks, strict=True):
    # A forced rank holds to the end, and 16 is no limit.
    assert (outcomes.ranks(one.model)["rank_most"] <= 2) == (rank == 2)
    assert one.skipped == 0
  # The first model beside another one, in another place. All calls are of one
  # program, since tracing it is what takes time.
  other, again = trainer(
    alone[::-1], [seeds[1] + 1, seeds[0]], [2, 2], name="test"
  )
  np.testing.assert_allclose(again.loss, found[0].loss, rtol=1e-5)
  text = lambda one: one.model.text.table[...]
  tolerances.assert_close(text(again), text(found[0]), "float32_deep")
  # Other seeds see other clips and noise.
  assert len({found[0].loss, found[1].loss, other.loss}) == 3


def test_scores_and_students_are_stacked_as_well(monkeypatch, seed) -> None:
  tiny_project.shrink(monkeypatch)
  config = tiny_project.config("ablate", "runlocal").stages["dmd"]
  config.data.update(num_frames=3)
  config.rollout.num_frames = 3
  config.optim.update(steps=2, warmup_steps=0, critic_updates=1)
  stage, settings = table.read(config)
  trainer = trainer_lib.Trainer(
    stage=stage, settings=settings, forced=False, dispatch=2
  )
  rng = np.random.default_rng(seed)
  score = tiny_project.video("dense", rng)
  students = [tiny_project.video("latent", rng) for _ in range(2)]
  students = [networks.prepare(x, settings) for x in students]
  found = trainer(
    [{"model": x, "real": score, "critic": score} for x in students],
    [0, 1],
    [0, 0],
    name="test",
  )
  for before, after in zip(students, found, strict=True):
    assert np.isfinite(after.loss) and after.skipped == 0
    weights = lambda x: x.dit.blocks.ffn.into.kernel[...]
    assert not np.array_equal(weights(after.model), weights(before))
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
