"""Consistency distillation: goldens, gradients, a toy with known optimum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from tests.parity import goldens
from videomla_jax.diffusion import consistency
from videomla_jax.diffusion import flow
from videomla_jax.diffusion import teacher_forcing
from videomla_jax.models import window as window_lib
from videomla_jax.training import optim

_CASES = ["n00", "n12", "n24", "n46"]
B, FRAMES = 2, 9
_WINDOW = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=6)


@functools.partial(jax.jit, static_argnames=("window", "first_chunk"))
def _gradients(student, target, teacher, clean, draws, text, negative, **where):
  """Loss and gradient as the training stage composes them."""
  guided = consistency.causal_guided(
    teacher, clean, text, negative, weight=consistency.GUIDANCE, **where
  )
  plan = teacher_forcing.plan(clean.shape[1], **where)

  def loss(student):
    return consistency.loss(
      consistency.causal(student, clean, text, **where),
      consistency.causal(target, clean, text, **where),
      guided,
      clean,
      draws,
      trained=jnp.asarray(plan.trained.reshape(-1)),
    )

  return jax.value_and_grad(loss, has_aux=True)(student)


def _golden(name: str) -> np.ndarray:
  return goldens.load("consistency")[name]


def _latents(name: str) -> jax.Array:
  return goldens.channels_last(_golden(name))


def _given(case: str) -> consistency.Draws:
  index = jnp.full((2,), int(case[1:]), jnp.int32)
  return consistency.Draws(_latents("in/noise"), index)


def _loss_of_golden(case, student_velocity):
  """The loss of networks that answer with the file's velocities."""
  seen = {}

  def network(name, velocity):
    def velocity_of(x, sigma):
      seen[name] = x
      return velocity

    return velocity_of

  guided = flow.guide(
    _latents("in/v_teacher_cond"),
    _latents("in/v_teacher_uncond"),
    consistency.GUIDANCE,
  )
  total, per_frame = consistency.loss(
    network("student", student_velocity),
    network("target", _latents("in/v_ema")),
    network("teacher", guided),
    _latents("in/x0"),
    _given(case),
  )
  return total, (per_frame, seen)


@pytest.mark.parametrize("case", _CASES)
def test_loss_and_its_inputs_equal_the_original(case):
  sigma, next_sigma = consistency.levels(_given(case).level)
  tolerances.assert_close(sigma[0] * 1000, _golden(f"{case}/t"), "golden_table")
  tolerances.assert_close(
    next_sigma[0] * 1000, _golden(f"{case}/t_next"), "golden_table"
  )
  total, (per_frame, seen) = _loss_of_golden(case, _latents("in/v_student"))
  assert (seen["student"] == seen["teacher"]).all()
  tolerances.assert_close(
    seen["student"], _latents(f"{case}/latent_t"), "golden_noised"
  )
  tolerances.assert_close(
    seen["target"], _latents(f"{case}/latent_t_next"), "golden_noised"
  )
  tolerances.assert_close(total, _golden(f"{case}/loss_exact"), "golden")
  tolerances.assert_close(per_frame.mean(), total)


@pytest.mark.parametrize("case", _CASES)
def test_gradient_is_that_of_the_originals_error(case):
  velocity = _latents("in/v_student")
  gradient = jax.grad(lambda v: _loss_of_golden(case, v)[0])(velocity)
  error = _latents(f"{case}/x0_student_exact") - _latents(
    f"{case}/x0_ema_exact"
  )
  sigma = _golden(f"{case}/t") / 1000
  tolerances.assert_close(gradient, -2 * sigma * error / error.size, "golden")


@pytest.mark.parametrize("case", _CASES)
def test_with_the_originals_table_loss_and_gradient_equal_it(case):
  # The original converts with the nearest entry of another table.
  table = flow.sigma_table(1000, s=5.0)

  def nearest(name):
    i = np.abs(table * 1000 - float(_golden(f"{case}/{name}"))).argmin()
    return jnp.full((2, 1), table[i], jnp.float32)

  def per_frame(velocity):
    return consistency.distance(
      _latents(f"{case}/latent_t"),
      velocity,
      nearest("t"),
      _latents(f"{case}/latent_t_next"),
      _latents("in/v_ema"),
      nearest("t_next"),
    )

  velocity = _latents("in/v_student")
  error = per_frame(velocity)
  tolerances.assert_close(
    error.mean(1), _golden(f"{case}/loss_per_sample_nearest"), "golden"
  )
  tolerances.assert_close(
    error.mean(), _golden(f"{case}/loss_nearest"), "golden"
  )
  gradient = jax.grad(lambda v: per_frame(v).mean())(velocity)
  tolerances.assert_close(
    gradient, _latents(f"{case}/dloss_dv_student_nearest"), "golden"
  )


def _inputs(rng):
  shape = (B, FRAMES, *tiny_model.FRAME)
  draws = consistency.Draws(
    tiny_model.normal(rng, *shape),
    jnp.asarray(rng.integers(0, 47, B), jnp.int32),
  )
  text, negative = (
    tiny_model.normal(rng, B, *tiny_model.TEXT) for _ in range(2)
  )
  return tiny_model.normal(rng, *shape), draws, text, negative


def test_gradients_are_those_of_a_regression_to_a_constant(seed):
  kind, first_chunk = "latent", 1
  rng = np.random.default_rng(seed)
  student, target, teacher = (
    tiny_model.build(kind, rng, num_layers=1, scan_blocks=False)
    for _ in range(3)
  )
  clean, draws, text, negative = _inputs(rng)
  where = dict(window=_WINDOW, first_chunk=first_chunk)
  (total, per_frame), ours = _gradients(
    student, target, teacher, clean, draws, text, negative, **where
  )

  # Prompt by prompt, and the target as a number.
  run = jax.jit(functools.partial(teacher_forcing.velocity, **where))
  grid = jnp.asarray(flow.sigma_table(48, s=5.0), jnp.float32)
  near, far = (grid[draws.level + i][:, None] for i in (1, 0))
  near, far = (jnp.repeat(x, FRAMES, 1) for x in (near, far))
  x = flow.add_noise(clean, draws.noise, far)
  cond = run(teacher, clean, x, far * 1000, text)
  uncond = run(teacher, clean, x, far * 1000, negative)
  step = (near - far)[..., None, None, None]
  next_x = x + step * (uncond + 3 * (cond - uncond))
  v = run(target, clean, next_x, near * 1000, text)
  goal = flow.x0_from_velocity(next_x, v, near)
  padding = 3 - first_chunk

  @jax.value_and_grad
  def regression(student):
    v = run(student, clean, x, far * 1000, text)
    error = flow.x0_from_velocity(x, v, far) - goal
    return (error[:, padding:] ** 2).mean()

  expected, gradient = regression(student)
  tolerances.assert_close(total, expected)
  assert per_frame.shape == (B, FRAMES)
  assert jax.tree.structure(ours) == jax.tree.structure(student)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(gradient)):
    tolerances.assert_close(a, b, "float32_gradient")


def _scalar(a):
  return lambda x, sigma: a * x


def test_target_and_teacher_get_exactly_no_gradient(seed):
  clean, draws, _, _ = _inputs(np.random.default_rng(seed))

  def loss(networks):
    return consistency.loss(*map(_scalar, networks), clean, draws)[0]

  gradient = jax.grad(loss)((0.3, 0.5, 0.7))
  assert gradient[0] != 0
  assert gradient[1:] == (0, 0)


def test_examples_have_their_own_noise_level(seed):
  clean, draws, _, _ = _inputs(np.random.default_rng(seed))
  networks = list(map(_scalar, (0.3, 0.5, 0.7)))
  _, both = consistency.loss(
    *networks, clean, draws._replace(level=jnp.asarray([3, 40]))
  )
  for b, n in enumerate((3, 40)):
    same = draws._replace(level=jnp.full((B,), n))
    _, alone = consistency.loss(*networks, clean, same)
    tolerances.assert_close(both[b], alone[b])


def test_draws_cover_the_grid_but_its_last_level(seed):
  draws = consistency.draw(jax.random.key(seed), (4000, 1, 2, 2, 1))
  assert set(np.unique(draws.level)) == set(range(47))
  assert draws.noise.shape == (4000, 1, 2, 2, 1)
  assert float(draws.noise.std()) == pytest.approx(1, abs=0.05)
  with pytest.raises(ValueError, match="num_levels=1 must be at least 2"):
    consistency.draw(jax.random.key(seed), (1, 1, 2, 2, 1), num_levels=1)


def _gaussian_coefficient(sigma, deviation):
  """a in E[v | x] = a x for clean latents N(0, deviation²)."""
  variance = (1 - sigma) ** 2 * deviation**2 + sigma**2
  return (sigma - (1 - sigma) * deviation**2) / variance


def test_linear_student_converges_to_the_chain_of_euler_steps(seed):
  # A teacher v = u_n x makes every Euler step a product, so f(x, σ_n) = c_n x
  # with c_n = c_{n+1} (1 - (σ_n - σ_{n+1}) u_n), from the last level, which the
  # student never sees and so keeps from its start at the teacher.
  count, decay = 6, 0.9
  grid = flow.sigma_table(count, s=5.0)
  cond, uncond = (_gaussian_coefficient(grid, d) for d in (0.5, 0.7))
  u = uncond + 3 * (cond - uncond)
  c = np.zeros(count)
  c[-1] = 1 - grid[-1] * u[-1]
  for n in range(count - 2, -1, -1):
    c[n] = c[n + 1] * (1 - (grid[n] - grid[n + 1]) * u[n])
  optimum = (1 - c) / grid

  def linear(coefficients):
    def velocity_of(x, sigma):
      levels = jnp.asarray(grid, jnp.float32)
      n = jnp.abs(sigma[:, :1] - levels).argmin(1)
      return coefficients[n][:, None, None, None, None] * x

    return velocity_of

  teacher = jnp.asarray(u, jnp.float32)

  @jax.jit
  def train(keys):
    def step(state, key):
      student, target = state
      key_data, key_draws = jax.random.split(key)
      clean = 0.5 * jax.random.normal(key_data, (16, 1, 2, 2, 2))
      draws = consistency.draw(key_draws, clean.shape, num_levels=count)
      loss, gradient = jax.value_and_grad(
        lambda s: consistency.loss(
          *map(linear, (s, target, teacher)), clean, draws, num_levels=count
        )[0]
      )(student)
      student = student - gradient
      target = optim.update_ema(target, student, jnp.float32(decay))
      return (student, target), loss

    return jax.lax.scan(step, (teacher, teacher), keys)

  (student, target), losses = train(
    jax.random.split(jax.random.key(seed), 1500)
  )
  np.testing.assert_allclose(student, optimum, atol=1e-4)
  np.testing.assert_allclose(target, optimum, atol=1e-4)
  assert losses[-1] < 1e-8 < losses[0]
  assert np.abs(optimum - u).max() > 0.01  # it had something to learn
