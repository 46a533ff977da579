"""Tests of one update: Adam, averages, accumulation, skipped updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tolerances
from videomla_jax.training import inputs
from videomla_jax.training import optim
from videomla_jax.training import optimiser
from videomla_jax.training import settings as settings_lib


def _settings(**changes):
  values = dict(
    steps=100,
    accumulate=1,
    schedule="constant",
    learning_rate=1e-2,
    matrix_rate=0.0,
    warmup_steps=0,
    final_fraction=0.1,
    b1=0.9,
    b2=0.99,
    eps=1e-8,
    weight_decay=0.01,
    clip_norm=1.0,
    ema_decay=0.9,
    ema_warmup=False,
    max_skipped=10,
  )
  return settings_lib.Optim(**(values | changes))


def _tree(rng):
  return {n: jnp.asarray(rng.standard_normal(3), jnp.float32) for n in "ab"}


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_updates_are_those_of_adamw(seed, b1):
  rng = np.random.default_rng(seed)
  settings = _settings(b1=b1)
  model = expected = _tree(rng)
  state = optim.init(model, settings)
  theirs = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(1e-2, b1=b1, b2=0.99, weight_decay=0.01),
  )
  moments = theirs.init(expected)
  for _ in range(4):
    gradient = _tree(rng)
    state, _ = optim.apply(state, gradient, jnp.float32(1), settings)
    updates, moments = theirs.update(gradient, moments, expected)
    expected = optax.apply_updates(expected, updates)
  for name in model:
    tolerances.assert_close(state.model[name], expected[name])


def test_without_momentum_only_one_moment_is_stored(seed):
  model = _tree(np.random.default_rng(seed))
  sizes = [
    sum(x.size for x in jax.tree.leaves(optim.init(model, settings).optimiser))
    for settings in (_settings(b1=0.0), _settings(b1=0.9))
  ]
  assert sizes[1] - sizes[0] >= 6  # as many as parameters


@pytest.mark.parametrize("schedule", optimiser.SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 4])
def test_the_rate_rises_during_a_warm_up_and_never_starts_at_zero(
  schedule, warmup
):
  settings = _settings(schedule=schedule, warmup_steps=warmup)
  _, rate = optimiser.make_optimiser(settings)
  rates = [float(rate(i)) for i in range(100)]
  assert rates[warmup] == pytest.approx(1e-2)
  assert all(a < b for a, b in zip(rates[:warmup], rates[1 : warmup + 1]))
  last = 1e-2 if schedule == "constant" else 1e-3
  assert rates[-1] == pytest.approx(last, rel=0.02)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_changes_nothing_but_counts(seed, bad):
  rng = np.random.default_rng(seed)
  settings = _settings()
  state = optim.init(_tree(rng), settings)
  state, _ = optim.apply(state, _tree(rng), jnp.float32(1), settings)
  broken = _tree(rng) | {"a": jnp.full(3, bad)}
  for gradient, loss in ((broken, 1.0), (_tree(rng), bad)):
    after, scalars = optim.apply(state, gradient, jnp.float32(loss), settings)
    for name in ("model", "ema", "optimiser"):
      pairs = zip(
        jax.tree.leaves(getattr(after, name)),
        jax.tree.leaves(getattr(state, name)),
      )
      assert all((a == b).all() for a, b in pairs)
    assert int(after.step) == int(state.step) + 1
    assert int(after.skipped) == int(scalars["train/skipped"]) == 1


@pytest.mark.parametrize("schedule", optimiser.SCHEDULES)
@pytest.mark.parametrize("rate", [np.nan, np.inf, 1e30, 1e38])
def test_parameters_that_would_be_lost_are_kept(seed, rate, schedule):
  rng = np.random.default_rng(seed)
  model = _tree(rng)
  # Settings are checked before, and a fault elsewhere may do the same.
  settings = _settings(learning_rate=rate, schedule=schedule)
  state = optim.init(model, settings)
  after, scalars = optim.apply(state, _tree(rng), jnp.float32(1), settings)
  for name in ("model", "ema", "optimiser"):
    pairs = zip(
      jax.tree.leaves(getattr(after, name)),
      jax.tree.leaves(getattr(state, name)),
    )
    assert all((a == b).all() for a, b in pairs)
  assert int(scalars["train/skipped"]) == 1 and int(after.step) == 1


def test_counters_of_long_runs_are_no_reason_to_skip(seed):
  rng = np.random.default_rng(seed)
  settings = _settings()
  state = optim.init(_tree(rng), settings)
  # Its square is beyond an int32.
  late = jax.tree.map(
    lambda x: x + 10**6 if jnp.issubdtype(x.dtype, jnp.integer) else x,
    state.optimiser,
  )
  state = state._replace(optimiser=late, step=jnp.int32(10**6))
  after, _ = optim.apply(state, _tree(rng), jnp.float32(1), settings)
  assert int(after.skipped) == 0


def test_averages_follow_at_once_or_after_a_warm_up(seed):
  rng = np.random.default_rng(seed)
  ema, new = _tree(rng)["a"], _tree(rng)["a"]
  for settings, step, rate in (
    (_settings(ema_decay=0.99), 0, 0.99),
    (_settings(ema_decay=0.999, ema_warmup=True), 0, 0.1),
    (_settings(ema_decay=0.999, ema_warmup=True), 10**6, 0.999),
  ):
    got = optim.update_ema(
      ema, new, optim.ema_rate(jnp.asarray(step), settings)
    )
    np.testing.assert_allclose(got, rate * ema + (1 - rate) * new, rtol=1e-5)


def test_a_second_network_has_its_own_rate_and_no_average(seed):
  rng = np.random.default_rng(seed)
  settings, gradient = _settings(weight_decay=0.0), _tree(rng)
  state = optim.init(_tree(rng), settings, averaged=False)
  assert state.ema is None
  moved = [
    optim.apply(state, gradient, jnp.float32(1), settings, learning_rate=rate)[
      0
    ].model["a"]
    - state.model["a"]
    for rate in (1e-2, 2e-2)
  ]
  np.testing.assert_allclose(2 * moved[0], moved[1], rtol=1e-3)


def test_microbatches_give_the_mean_of_the_whole_batch(seed):
  rng = np.random.default_rng(seed)
  batch = dict(
    latents=jnp.asarray(rng.standard_normal((6, 2)), jnp.float32),
    negative=jnp.asarray(rng.standard_normal(2), jnp.float32),
  )

  def gradients(batch, key):
    del key
    loss = lambda w: (
      (batch["latents"] @ w - batch["negative"] @ w) ** 2
    ).mean()
    return jax.value_and_grad(loss)(jnp.asarray([1.0, -2.0]))

  key = jax.random.key(0)
  whole = optim.accumulated(gradients, batch, key, microbatches=1)
  for count in (2, 3):
    ours = optim.accumulated(gradients, batch, key, microbatches=count)
    for a, b in zip(ours, whole):
      tolerances.assert_close(a, b)
  with pytest.raises(ValueError, match=r"batch_size=6 .* multiple of 4"):
    inputs.split(batch, 4)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(schedule="linear"), "use one of"),
    (dict(steps=5, warmup_steps=5), "train longer"),
    (dict(ema_decay=1.0), "from 0 to below 1"),
    (dict(accumulate=0), "at least 1"),
    (dict(learning_rate=np.nan), "learning_rate=nan must be positive"),
    (dict(learning_rate=0.0), "must be positive and finite"),
    (dict(learning_rate=-1e-3), "must be positive and finite"),
    (dict(learning_rate=np.inf), "must be positive and finite"),
    (dict(warmup_steps=-1), "at least 0"),
    (dict(b1=1.0), "from 0 to below 1"),
    (dict(b2=-0.1), "from 0 to below 1"),
    (dict(eps=0.0), "must be positive"),
    (dict(weight_decay=np.nan), "at least 0"),
    (dict(clip_norm=0.0), "must be positive"),
    (dict(final_fraction=1.5), "from 0 to 1"),
  ],
)
def test_optim_that_cannot_train_is_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    optimiser.check(_settings(**changes))
