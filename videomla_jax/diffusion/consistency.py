"""Stage 2: causal consistency distillation, docs/method.md, section 11.

A student learns to jump from any noise level to where the teacher's flow ODE
ends, so that a few calls replace many. On a grid of levels σ_0 > σ_1 > ...

  x_n     = (1 - σ_n) x₀ + σ_n ε                                        (11.1)
  v_T     = v_neg + w (v_text - v_neg)             teacher, guided
  x_{n+1} = x_n - (σ_n - σ_{n+1}) v_T              one Euler step       (11.2)
  f(x, σ) = x - σ v(x, σ)                          so f(x, 0) = x       (11.3)
  L       = mean (f(x_n, σ_n) - sg f⁻(x_{n+1}, σ_{n+1}))²               (11.4)

where f⁻ is an exponential average of the student. All networks are causal and
see clean history through the window, as in stage 1. Guidance is distilled into
the student, which sees the prompt only. The last level is a target but never
an input of the student, and σ = 0 is neither.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key

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
    noise: Gaussian noise ε.
    level: Index n of the noise level of each row, 0..levels - 2.
  """

  noise: Latents
  level: Int[Array, "B"]


def check_levels(num_levels: int) -> None:
  """Refuses a grid without a step.

  Raises:
    ValueError: If there are fewer than two levels.
  """
  if num_levels < 2:
    raise ValueError(
      f"num_levels={num_levels} must be at least 2, since a step goes from "
      f"one level to the next; use {NUM_LEVELS}."
    )


def draw(
  key: Key[Array, ""], shape: tuple[int, ...], *, num_levels: int = NUM_LEVELS
) -> Draws:
  """Draws noise and one noise level per row.

  Args:
    key: Random key.
    shape: B, T, H, W, C of the clean latents.
    num_levels: Number of levels of the grid.

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
  """Returns σ_n and σ_{n+1} of each row.

  Args:
    index: n of each row, 0..num_levels - 2.
    num_levels: Number of levels of the grid.
    s: Warp of the grid, see `flow.shift`.
  """
  # The grid does not depend on the row, so it is a constant of the program.
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
  """Returns the squared difference of the two jumps per frame, Eq. (11.4).

  Args:
    x: Latents at `sigma`.
    velocity: The velocity that the student predicts for them.
    sigma: Level σ_n.
    next_x: Latents at `next_sigma`.
    next_velocity: The velocity that the target network predicts for them; it
      gets no gradient.
    next_sigma: Level σ_{n+1}.
  """
  jump = flow.x0_from_velocity(x, velocity, sigma)
  target = flow.x0_from_velocity(next_x, next_velocity, next_sigma)
  # The target is a constant, or both jumps would agree on anything.
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
  """Returns the consistency loss, Eq. (11.4), in float32, without weights.

  Args:
    student: The network that is trained.
    target: The exponential average of the student; it gets no gradient.
    teacher: The guided stage-1 network; it gets no gradient.
    clean: Clean latents x₀.
    draws: Noise and level of each row, see `draw`.
    num_levels: Number of levels of the grid.
    s: Warp of the grid, see `flow.shift`.
    trained: False for frames that do not count; all count by default.

  Returns:
    The mean over trained frames and the loss of each frame.
  """
  per_frame = clean.shape[:2]
  sigma, next_sigma = (
    jnp.broadcast_to(level[:, None], per_frame)
    for level in levels(draws.level, num_levels=num_levels, s=s)
  )
  # The student starts where the teacher does; only the target goes a step on.
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
  # Padding in front of a short first chunk counts for nothing.
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
  """Returns the velocity of a network that sees clean history.

  Args:
    model: The network.
    clean: Clean latents.
    text: Text embeddings.
    window: Which frames a chunk sees.
    first_chunk: Real frames of the first chunk, see `teacher_forcing.plan`.
  """

  def velocity_of(x: Latents, sigma: Float32[Array, "B T"]) -> Latents:
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
  """Returns the guided velocity of a network that sees clean history.

  Both prompts run as one batch.

  Args:
    model: The network.
    clean: Clean latents.
    text: Embeddings of the prompts.
    negative: Embeddings of the negative prompt.
    weight: w in `uncond + w (cond - uncond)`.
    window: Which frames a chunk sees.
    first_chunk: Real frames of the first chunk, see `teacher_forcing.plan`.
  """

  def both(x: Array) -> Array:
    # The two prompts of a row are neighbours, so a batch that is split over
    # devices stays where it is.
    return jnp.repeat(x, 2, axis=0)

  prompts = jnp.stack([text, negative], axis=1).reshape(-1, *text.shape[1:])
  network = causal(
    model, both(clean), prompts, window=window, first_chunk=first_chunk
  )

  def velocity_of(x: Latents, sigma: Float32[Array, "B T"]) -> Latents:
    answers = network(both(x), both(sigma))
    answers = answers.reshape(x.shape[0], 2, *answers.shape[1:])
    return flow.guide(answers[:, 0], answers[:, 1], weight)

  return velocity_of
