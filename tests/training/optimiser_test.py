"""AdamW and Muon: what an update does to matrices and to vectors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tolerances
from videomla_jax.training import optimiser
from videomla_jax.training import settings

OPTIM = settings.Optim(
  steps=100,
  accumulate=1,
  schedule="constant",
  learning_rate=1e-3,
  warmup_steps=0,
  final_fraction=None,
  b1=0.9,
  b2=0.99,
  eps=1e-8,
  weight_decay=0.0,
  clip_norm=1e9,
  ema_decay=0.9,
  ema_warmup=False,
  max_skipped=1,
  matrix_rate=0.05,
)


def _draw(rng: np.random.Generator) -> dict[str, dict[str, jax.Array]]:
  shapes = dict(
    conv=dict(kernel=(3, 3, 3, 4, 6), bias=(6,)),
    wide=dict(kernel=(2, 7)),
    blocks=dict(kernel=(3, 5, 4)),
    text=dict(table=(9, 4)),
  )
  draw = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def _update(optim: settings.Optim, gradient, params):
  made, _ = optimiser.make_optimiser(optim)
  return jax.jit(lambda g: made.update(g, made.init(params), params)[0])(
    gradient
  )


def test_muon_moves_all_directions_of_a_kernel_equally_far(seed) -> None:
  rng = np.random.default_rng(seed)
  params, gradient = _draw(rng), _draw(rng)
  # One direction is a thousand times as large as the others.
  steep = gradient["conv"]["kernel"].at[..., 0].multiply(1e3)
  gradient["conv"]["kernel"] = steep
  update = _update(OPTIM, gradient, params)["conv"]["kernel"]
  matrix = np.asarray(update).reshape(-1, 6)
  sizes = np.linalg.svd(matrix, compute_uv=False)
  assert sizes.max() < 1.3 * 0.05
  # Five rounds of Newton and Schulz bring a small one most of the way.
  assert sizes[1:].min() > 0.005
  # It points downhill.
  assert (np.asarray(steep) * update).sum() < 0


def test_a_wide_matrix_moves_further(seed) -> None:
  rng = np.random.default_rng(seed)
  update = _update(OPTIM, _draw(rng), _draw(rng))
  sizes = np.linalg.svd(np.asarray(update["wide"]["kernel"]), compute_uv=False)
  scale = 0.05 * (7 / 2) ** 0.5
  assert (0.6 * scale < sizes).all()
  assert (sizes < 1.3 * scale).all()


def test_stacked_blocks_are_a_matrix_each(seed) -> None:
  rng = np.random.default_rng(seed)
  params, gradient = _draw(rng), _draw(rng)
  # One block has a far steeper gradient, which takes nothing from the others.
  steep = gradient["blocks"]["kernel"].at[0].multiply(1e4)
  gradient["blocks"]["kernel"] = steep
  together = _update(OPTIM, gradient, params)["blocks"]["kernel"]
  for i in range(3):
    alone = {"conv": {"kernel": steep[i]}}
    one = _update(OPTIM, alone, alone)["conv"]["kernel"]
    tolerances.assert_close(together[i], one)


def test_vectors_and_words_are_updated_by_adam(seed) -> None:
  rng = np.random.default_rng(seed)
  params, gradient = _draw(rng), _draw(rng)
  update = _update(OPTIM, gradient, params)
  adam = optax.adam(1e-3, b1=0.9, b2=0.99, eps=1e-8, nesterov=True)
  expected, _ = adam.update(gradient, adam.init(params), params)
  tolerances.assert_close(update["conv"]["bias"], expected["conv"]["bias"])
  table = update["text"]["table"]
  tolerances.assert_close(table, expected["text"]["table"])


def test_without_a_rate_all_is_adamw(seed) -> None:
  rng = np.random.default_rng(seed)
  params, gradient = _draw(rng), _draw(rng)
  without = dataclasses.replace(OPTIM, matrix_rate=0.0)
  found = _update(without, gradient, params)
  adam = optax.adamw(1e-3, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0)
  expected, _ = adam.update(gradient, adam.init(params), params)
  jax.tree.map(tolerances.assert_close, found, expected)


@pytest.mark.parametrize("rate", [-0.1, float("inf"), float("nan")])
def test_rates_out_of_range_are_refused(rate) -> None:
  with pytest.raises(ValueError, match="matrix_rate"):
    optimiser.check(dataclasses.replace(OPTIM, matrix_rate=rate))
