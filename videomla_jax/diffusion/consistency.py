"""Stage 2: causal consistency distillation, spec/training.md section 2.

A student learns to jump from any noise level to where the teacher's flow ODE
ends, so that a few calls replace many. On a grid of levels σ_0 > σ_1 > ...

  x_n     = (1 - σ_n) x₀ + σ_n ε                                         (1)
  v_T     = v_neg + w (v_text - v_neg)             teacher, guided
  x_{n+1} = x_n - (σ_n - σ_{n+1}) v_T              one Euler step        (2)
  f(x, σ) = x - σ v(x, σ)                          so f(x, 0) = x        (3)
  L       = mean (f(x_n, σ_n) - sg f⁻(x_{n+1}, σ_{n+1}))²                (4)

where f⁻ is an exponential average of the student. All networks are causal and
see clean history through the window, as in stage 1. Guidance is distilled into
the student, which sees the prompt only. The last level is a target but never
an input of the student, and σ = 0 is neither.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from videomla_jax.diffusion import flow
from videomla_jax.diffusion import teacher_forcing
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib

Latents = Float[Array, "B T H W C"]
# (noisy latents, σ of each frame) -> velocity.
VelocityOf = Callable[[Latents, Float32[Array, "B T"]], Latents]

NUM_LEVELS = 48
GUIDANCE = 3.0


class Draws(NamedTuple):
  """What one step draws at random.

  Attributes:
    noise: ε, Gaussian.
    level: n of each example, 0..levels - 2.
  """

  noise: Latents
  level: Int[Array, "B"]


def check_levels(num_levels: int) -> None:
  """Raises `ValueError` if the grid has no step."""
  if num_levels < 2:
    raise ValueError(
      f"num_levels={num_levels} must be at least 2, since a step goes from "
      f"one level to the next; use {NUM_LEVELS}."
    )


def draw(
  key: Array, shape: tuple[int, ...], *, num_levels: int = NUM_LEVELS
) -> Draws:
  """Draws noise and one noise level per example.

  Args:
    key: Random key.
    shape: B, T, H, W, C of the clean latents.
    num_levels: Entries of the grid.

  Raises:
    ValueError: If the grid has no step.
  """
  check_levels(num_levels)
  key_noise, key_index = jax.random.split(key)
  return Draws(
    jax.random.normal(key_noise, shape, jnp.float32),
    jax.random.randint(key_index, shape[:1], 0, num_levels - 1),
  )


def levels(
  index: Int[Array, "B"], *, num_levels: int = NUM_LEVELS, s: float = 5.0
) -> tuple[Float32[Array, "B"], Float32[Array, "B"]]:
  """σ_n and σ_{n+1}.

  Args:
    index: n, 0..num_levels - 2.
    num_levels: Entries of the grid.
    s: Warp of the grid, see `flow.shift`.
  """
  grid = jnp.asarray(flow.sigma_table(num_levels, s=s), jnp.float32)
  return grid[index], grid[index + 1]


def distance(
  x: Latents,
  velocity: Latents,
  sigma: Float32[Array, "B #T"],
  next_x: Latents,
  next_velocity: Latents,
  next_sigma: Float32[Array, "B #T"],
) -> Float32[Array, "B T"]:
  """Squared difference of the two jumps in each frame, Eq. (3) and (4).

  Args:
    x: Latents at `sigma`.
    velocity: The student's answer to them.
    sigma: σ_n.
    next_x: Latents at `next_sigma`.
    next_velocity: The target network's answer; gets no gradient.
    next_sigma: σ_{n+1}.
  """
  jump = flow.x0_from_velocity(x, velocity, sigma)
  target = flow.x0_from_velocity(next_x, next_velocity, next_sigma)
  error = jump - jax.lax.stop_gradient(target)
  return jnp.mean(error**2, axis=(2, 3, 4), dtype=jnp.float32)


def loss(
  student: VelocityOf,
  target: VelocityOf,
  teacher: VelocityOf,
  clean: Latents,
  draws: Draws,
  *,
  num_levels: int = NUM_LEVELS,
  s: float = 5.0,
  trained: Bool[Array, "T"] | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, "B T"]]:
  """Consistency loss, Eq. (4), in float32 and without weights.

  Args:
    student: The network that is trained.
    target: Its exponential average; gets no gradient.
    teacher: The guided stage-1 network; gets no gradient.
    clean: Clean latents x0.
    draws: See `draw`.
    num_levels: Entries of the grid.
    s: Warp of the grid.
    trained: False for frames that do not count; all count by default.

  Returns:
    The mean over trained frames and the loss of each frame.
  """
  per_frame = clean.shape[:2]
  sigma, next_sigma = (
    jnp.broadcast_to(level[:, None], per_frame)
    for level in levels(draws.level, num_levels=num_levels, s=s)
  )
  x = flow.add_noise(clean, draws.noise, sigma)
  next_x = flow.euler_step(x, teacher(x, sigma), sigma, next_sigma)
  next_x = jax.lax.stop_gradient(next_x)
  error = distance(
    x,
    student(x, sigma),
    sigma,
    next_x,
    target(next_x, next_sigma),
    next_sigma,
  )
  if trained is None:
    return error.mean(), error
  total = jnp.where(trained, error, 0.0).sum()
  return total / (trained.sum() * clean.shape[0]), error


def causal(
  model: wan.WanDiT,
  clean: Latents,
  text: Float[Array, "B M E"],
  *,
  window: window_lib.Window,
  first_chunk: int | None = None,
) -> VelocityOf:
  """A network that sees clean history, see `teacher_forcing.velocity`."""

  def velocity_of(x, sigma):
    return teacher_forcing.velocity(
      model,
      clean,
      x,
      sigma * wan_config.MAX_TIMESTEP,
      text,
      window=window,
      first_chunk=first_chunk,
    )

  return velocity_of


def causal_guided(
  model: wan.WanDiT,
  clean: Latents,
  text: Float[Array, "B M E"],
  negative: Float[Array, "B M E"],
  *,
  weight: float,
  window: window_lib.Window,
  first_chunk: int | None = None,
) -> VelocityOf:
  """`causal` with guidance; both prompts run as one batch.

  An example's two prompts are neighbours, so a batch that is split over devices
  stays where it is.
  """

  def both(x):
    return jnp.repeat(x, 2, axis=0)

  prompts = jnp.stack([text, negative], axis=1).reshape(-1, *text.shape[1:])
  where = dict(window=window, first_chunk=first_chunk)
  network = causal(model, both(clean), prompts, **where)

  def velocity_of(x, sigma):
    answers = network(both(x), both(sigma))
    answers = answers.reshape(x.shape[0], 2, *answers.shape[1:])
    return flow.guide(answers[:, 0], answers[:, 1], weight)

  return velocity_of
