"""The ranks that a training run writes."""

import numpy as np
import pytest

from tests import tiny_model
from videomla_jax.analysis import operators
from videomla_jax.conversion import low_rank
from videomla_jax.conversion import to_latent
from videomla_jax.training import rank_metrics


@pytest.mark.parametrize("kind", ["latent", "dense"])
def test_scalars_are_the_ranks_of_the_layers(seed, kind):
  model = tiny_model.build(kind, np.random.default_rng(seed), num_layers=3)
  stacked = {k: np.asarray(x) for k, x in rank_metrics.weights(model).items()}
  found = rank_metrics.scalars(stacked)
  ranks = [
    low_rank.effective_rank(
      operators.operator_of(to_latent.layer_parameters(model, n)).spectrum()
    )
    for n in range(3)
  ]
  assert found["rank/median"] == np.median(ranks)
  assert (found["rank/least"], found["rank/most"]) == (min(ranks), max(ranks))
  assert 0 < found["rank/share"] <= 1


def test_a_model_that_has_diverged_has_no_ranks_and_stops_nothing(seed):
  model = tiny_model.build("latent", np.random.default_rng(seed))
  stacked = {k: np.array(x) for k, x in rank_metrics.weights(model).items()}
  stacked["w_uk/kernel"][0, 0, 0] = np.nan
  assert rank_metrics.scalars(stacked) == {}
