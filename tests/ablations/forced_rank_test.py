"""The projection against a singular value decomposition of the operator."""

import jax
import numpy as np
import pytest

from tests import tiny_project
from tests import tolerances
from videomla_jax.ablations import forced_rank
from videomla_jax.analysis import operators
from videomla_jax.conversion import low_rank
from videomla_jax.conversion import to_latent


def _matrices(model):
  for n in range(model.dit.config.num_layers):
    operator = operators.operator_of(to_latent.layer_parameters(model.dit, n))
    yield operator.up @ operator.down


@pytest.mark.parametrize("rank", [1, 5, 16])
def test_operators_become_their_best_approximations(
  seed: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
  tiny_project.shrink(monkeypatch)
  model = tiny_project.video("latent", np.random.default_rng(seed))
  before = [*_matrices(model)]
  cut = jax.jit(forced_rank.project)(model, rank)
  for old, new in zip(before, _matrices(cut), strict=True):
    u, s, v = np.linalg.svd(old)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    tolerances.assert_close(new, best)
    values = np.linalg.svd(new, compute_uv=False)
    assert low_rank.effective_rank(values) <= rank
  # The model that was given is the same, and nothing else has changed.
  np.testing.assert_array_equal([*_matrices(model)], before)
  again = jax.jit(forced_rank.project)(cut, rank)
  jax.tree.map(tolerances.assert_close, again, cut)
