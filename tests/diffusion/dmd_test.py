"""Distribution matching: goldens, clips, toys with known optima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from tests.parity import goldens
from videomla_jax.diffusion import dmd
from videomla_jax.diffusion import flow
from videomla_jax.diffusion import sampling
from videomla_jax.models import window as window_lib

B, CHUNK = 2, 2
_SAMPLER = sampling.few_step((1000, 500, 250))
_WINDOW = window_lib.Window(chunk_frames=CHUNK, sink_frames=1, local_frames=4)
_SETUP = dmd.Setup(window=_WINDOW, sampler=_SAMPLER, clip_frames=6)


def _golden(name: str) -> np.ndarray:
  return goldens.load("dmd")[name]


def _latents(name: str) -> jax.Array:
  return goldens.channels_last(_golden(name))


def _score_draws() -> dmd.ScoreDraws:
  sigma = dmd.score_sigma(jnp.asarray(_golden("in/raw_t")), s=5.0)
  return dmd.ScoreDraws(sigma, _latents("in/eps"))


def test_score_levels_equal_the_original():
  sigma = dmd.score_sigma(jnp.asarray(_golden("timestep/raw")), s=5.0)
  tolerances.assert_close(sigma * 1000, _golden("timestep/t"), "golden_table")
  tolerances.assert_close(
    _score_draws().sigma * 1000, _golden("gen/t")[:, 0], "golden_table"
  )


def _compare_golden(g: float, fake_g: float):
  """Gradient from scores that answer with the file's x0."""

  def network(x0, name="gen/X_t"):
    def velocity_of(x, sigma):
      tolerances.assert_close(x, _latents(name), "golden")
      return flow.velocity_from_x0(x, x0, sigma[:, None])

    return velocity_of

  real, fake = (
    flow.guide(_latents(cond), _latents(uncond), g + 1)
    for cond, uncond, g in (
      ("in/x0_real_cond", "in/x0_real_uncond", g),
      ("in/x0_fake", "in/x0_fake_uncond", fake_g),
    )
  )
  x = _latents("in/X")
  return dmd.compare(network(real), network(fake), x, _score_draws())


@pytest.mark.parametrize(
  ("run", "g", "fake_g"),
  [("gen", 3.0, 0.0), ("gen_g5.0_f0.0", 5.0, 0.0), ("gen_g3.0_f1.0", 3.0, 1.0)],
)
def test_generator_gradient_and_loss_equal_the_original(run, g, fake_g):
  gradient = _compare_golden(g, fake_g)
  tolerances.assert_close(gradient, _latents(f"{run}/grad"), "golden")
  loss = dmd.generator_loss(_latents("in/X"), gradient)
  tolerances.assert_close(loss, _golden(f"{run}/loss"), "golden")
  if run == "gen":
    assert dmd.Setup(window=_WINDOW, sampler=_SAMPLER).guidance == g + 1
    tolerances.assert_close(
      jnp.abs(gradient).mean(), _golden("gen/grad_abs_mean"), "golden"
    )


@pytest.mark.parametrize("run", ["gen", "gen_masked"])
def test_derivative_to_the_clip_equals_the_original(run):
  counted = slice(None)
  if run == "gen_masked":
    counted = np.arange(6) >= 3
    mask = goldens.channels_last(_golden("gen_masked/mask"))
    assert (mask == counted[:, None, None, None]).all()
  loss, derivative = jax.value_and_grad(dmd.generator_loss)(
    _latents("in/X"), _latents("gen/grad"), counted
  )
  tolerances.assert_close(loss, _golden(f"{run}/loss"), "golden")
  tolerances.assert_close(derivative, _latents(f"{run}/dloss_dX"), "golden")


def test_normaliser_has_no_epsilon_but_the_gradient_is_finite():
  x = jnp.ones((1, 1, 2, 2, 1))
  fake = x.at[0, 0, 0, 0, 0].set(2.0)
  gradient = dmd.score_gradient(x, real=x, fake=fake)
  assert gradient.max() == np.finfo(np.float32).max
  assert (gradient == 0).sum() == 3


def test_exchanged_scores_point_the_other_way(seed):
  rng = np.random.default_rng(seed)
  x, real = (tiny_model.normal(rng, B, 3, *tiny_model.FRAME) for _ in range(2))
  fake = 2 * x - real  # as far from x, so the normaliser is the same
  there = dmd.score_gradient(x, real, fake)
  tolerances.assert_close(dmd.score_gradient(x, fake, real), -there)


def test_critic_loss_equals_the_original():
  def critic(x, sigma):
    tolerances.assert_close(x, _latents("critic/X_t"), "golden")
    return _latents("critic/v_psi")

  loss = dmd.critic_loss(critic, _latents("in/X"), _score_draws())
  tolerances.assert_close(loss, _golden("critic/loss_velocity"), "golden")


def test_the_critics_loss_has_no_gradient_to_the_clip():
  def loss(x):
    return dmd.critic_loss(lambda y, sigma: 0.3 * y, x, _score_draws())

  assert not jax.grad(loss)(_latents("in/X")).any()


def test_clip_is_the_last_frames_with_a_new_first_one(seed):
  rng = np.random.default_rng(seed)
  setup = dmd.Setup(window=window_lib.Window(), sampler=_SAMPLER)
  video = tiny_model.normal(rng, 1, 30, *tiny_model.FRAME)
  seen = []

  def image_latent(prefix):
    seen.append(prefix.shape[1])
    return jnp.zeros_like(prefix[:, :1])

  clip = dmd.clip_of(video, setup=setup, image_latent=image_latent)
  assert seen == [10]
  assert (clip[:, 0] == 0).all()
  assert (clip[:, 1:] == video[:, 10:]).all()
  whole = dmd.clip_of(video[:, :21], setup=setup, image_latent=image_latent)
  assert (whole == video[:, :21]).all()
  assert (dmd.clip_of(video, setup=setup) == video[:, 9:]).all()


@pytest.mark.parametrize(
  ("new", "total", "trained"),
  [(21, 21, 21), (24, 24, 18), (240, 240, 18), (18, 39, 18), (15, 36, 15)],
)
def test_trained_frames_are_the_last_ones(new, total, trained):
  setup = dmd.Setup(window=window_lib.Window(), sampler=_SAMPLER)
  assert dmd.num_trained(new, total, setup=setup) == trained


@pytest.mark.parametrize(("new", "total"), [(18, 18), (20, 41)])
def test_rollouts_that_give_no_clip_are_refused(new, total):
  setup = dmd.Setup(window=window_lib.Window(), sampler=_SAMPLER)
  with pytest.raises(ValueError, match=f"new_frames={new}.*total_frames"):
    dmd.num_trained(new, total, setup=setup)


def test_samplers_of_teachers_are_refused():
  sampler = sampling.euler(4, shift=5.0, guidance=3.0)
  with pytest.raises(ValueError, match=r"use sampling.few_step\(\)"):
    dmd.Setup(window=_WINDOW, sampler=sampler)


def _gaussian_velocity(mean, deviation):
  """E[v | x] for clean latents N(mean, deviation²), linear in x."""

  def velocity_of(x, sigma):
    sigma = sigma[:, None, None, None, None]
    signal = (1 - sigma) * deviation**2
    gain = signal / ((1 - sigma) * signal + sigma**2)
    x0 = mean + gain * (x - (1 - sigma) * mean)
    return (x - x0) / sigma

  return velocity_of


_TOY = (32, 1, 4, 4, 2)


def test_linear_generator_converges_to_the_guided_distribution(seed):
  # Scores of N(1, ¼) and N(0.6, ¼) guided with w = 4 are those of N(2.2, ¼).
  cond, uncond = (_gaussian_velocity(m, 0.5) for m in (1.0, 0.6))

  def guided(x, sigma):
    return flow.guide(cond(x, sigma), uncond(x, sigma), 4.0)

  @jax.jit
  def train(start, keys):
    def step(state, key):
      key_z, key_score = jax.random.split(key)
      z = jax.random.normal(key_z, _TOY)
      draws = dmd.draw_score(key_score, _TOY, s=5.0)
      x, back = jax.vjp(lambda s: s[0] + s[1] * z, state)
      fake = _gaussian_velocity(*state)  # a critic at its optimum
      g = dmd.compare(guided, fake, x, draws)
      (gradient,) = back(jax.grad(dmd.generator_loss)(x, g))
      return state - 0.2 * gradient, None

    return jax.lax.scan(step, start, keys)[0]

  start = jnp.asarray([-1.0, 1.5])
  state = train(start, jax.random.split(jax.random.key(seed), 2000))
  np.testing.assert_allclose(state, [2.2, 0.5], atol=1e-3)


def test_linear_critic_converges_to_the_students_score(seed):
  # At one σ the best linear critic is E[v | x] of the student's N(m, d²).
  sigma, mean, deviation = 0.6, 0.8, 0.5
  key_x, key_noise = jax.random.split(jax.random.key(seed))
  shape = (512, 1, 4, 4, 2)
  x = mean + deviation * jax.random.normal(key_x, shape)
  noise = jax.random.normal(key_noise, shape)
  draws = dmd.ScoreDraws(jnp.full(shape[:1], sigma), noise)

  def loss(w):
    return dmd.critic_loss(lambda x, sigma: w[0] * x + w[1], x, draws)

  @jax.jit
  def train(w):
    step = lambda w, _: (w - 0.3 * jax.grad(loss)(w), None)
    return jax.lax.scan(step, w, length=400)[0]

  w = train(jnp.zeros(2))
  noisy = np.asarray((1 - sigma) * x + sigma * noise, np.float64).ravel()
  design = np.stack([noisy, np.ones_like(noisy)], 1)
  target = np.asarray(noise - x, np.float64).ravel()
  best = np.linalg.lstsq(design, target)[0]
  np.testing.assert_allclose(w, best, atol=1e-4)  # of these samples
  optimum = _gaussian_velocity(mean, deviation)
  at = jnp.asarray([0.0, 1.0]).reshape(2, 1, 1, 1, 1)
  zero, one = np.ravel(optimum(at, jnp.full((2,), sigma)))
  # Of the distribution: 16,384 samples, five standard errors.
  np.testing.assert_allclose(w, [one - zero, zero], atol=0.05)
